"""Images and signals read in random order: the memory of the process that reads them, and how many it reads a second.

A source is written with as many different media as are asked for, one in ten a signal of 1,000 steps, the others JPEGs
of 64 to 224 pixels a side, and read in a fresh process: every pack once, in random order, each medium checked against
its hash, decoded, resized and cut. The process reports its peak of resident memory, which holds the pages of mapped
files.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MEDIA, QUICK_MEDIA = 100_000, 500
SEQ_LEN, SIDES = 512, (64, 128, 224)
ROWS_AT_ONCE = 1000
READ = """
import resource, sys, time
from pathlib import Path
import numpy as np
from trainer.data.media.shards import MediaShards

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

import trainer.data.media.images, PIL.Image
before = peak()
shards = MediaShards(Path(sys.argv[1]), cache=Path(sys.argv[1], "cache"))
count, media, start = shards.num_windows(int(sys.argv[2])), 0, time.process_time()
for pack in np.random.default_rng(0).permutation(count):
    media += len(shards.read(np.array([pack]), int(sys.argv[2])).media)
print(count, media, before, peak(), time.process_time() - start, "torch" in sys.modules)
"""


def report(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Print and return the figures. rounds: how often the source is read."""
    with tempfile.TemporaryDirectory() as directory:
        found = [read(make(Path(directory), QUICK_MEDIA if quick else MEDIA)) for _ in range(rounds)]
    best = min(found, key=lambda one: float(one["seconds"]))
    print(f"\n{best['media']:,} images and signals in {best['packs']:,} packs of {SEQ_LEN} tokens, in random order:")
    print(f"peak memory {best['peak']:.0f} MiB, {best['before']:.0f} MiB of it before the first is read")
    print(f"{best['media'] / best['seconds']:,.0f} images and signals a CPU-second")
    return best


def make(directory: Path, count: int) -> Path:
    """A source of `count` documents with an image or signal each; made once for a directory."""
    from tests.trainer.corpora.tokenize import tokenized
    from tests.trainer.data.media import illustrated
    from trainer.corpora.tokenize import write
    from trainer.corpora.tokenize.tokenize import tokenize_source

    out = directory / "source"
    if out.exists():
        return out
    write.HAS_WHEEL = False
    with pq.ParquetWriter(directory / "rows.parquet", _schema()) as file:
        for first in range(0, count, ROWS_AT_ONCE):
            rows = [{"content": _document(number)} for number in range(first, min(count, first + ROWS_AT_ONCE))]
            file.write_table(pa.Table.from_pylist(rows, _schema()))
    tokenize_source(
        [directory / "rows.parquet"], illustrated.save_tokenizer(directory), out, name="media", domain="general",
        field="content", media=illustrated.rules(), heldout_fraction=0, prefixes=tokenized.PREFIXES,
        workers=0 if count <= QUICK_MEDIA else os.cpu_count() or 1, shard_tokens=1 << 20,
    )  # fmt: skip
    return out


def read(source: Path) -> dict[str, Any]:
    """Read every pack of a source in a fresh process."""
    command = [sys.executable, "-c", READ, str(source), str(SEQ_LEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    packs, media, before, peak, seconds, torch = (json.loads(word.lower()) for word in done.stdout.split())
    return {"packs": packs, "media": media, "before": before, "peak": peak, "seconds": seconds, "torch": torch}


def _schema() -> Any:
    part = {"type": pa.string(), "text": pa.string(), "bytes": pa.binary(), "format": pa.string(), "rate": pa.float64()}
    return pa.schema({"content": pa.list_(pa.struct(part))})


def _document(number: int) -> list[dict[str, Any]]:
    from PIL import Image

    random, file = np.random.default_rng(number), io.BytesIO()
    text = {"type": "text", "text": f"note {number}: an atom of iron.\n"}
    if number % 10 == 0:
        np.save(file, random.standard_normal((1000, 2)).astype(np.float32))
        return [text, {"type": "signal", "bytes": file.getvalue(), "format": "numpy", "rate": 250.0}]
    side = SIDES[number % len(SIDES)]
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    coarse.resize((side, side)).save(file, "JPEG", quality=90)
    return [{"type": "image", "bytes": file.getvalue()}, text]
