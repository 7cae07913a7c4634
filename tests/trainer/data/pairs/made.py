"""Directories of pairs written by hand in the form that img2dataset leaves."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.keys import DataConfig
from trainer.config.mixture import PairSourceConfig
from trainer.data.shards.tokenizer import Tokenizer, train_bpe

CAPTIONS = (
    "A red fox in the snow",
    "雪地里的一只红狐狸",
    "Un zorro rojo en la nieve",
    "لقطة لثعلب أحمر في الثلج",
    "赤いキツネと雪",
    "Красная лиса на снегу",
)


def image(number: int, kind: str = "JPEG") -> bytes:
    """A picture of sides of its own."""
    from PIL import Image

    values = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize((40 + number % 3 * 8, 32 + number % 5 * 8)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """Name -> content, with the extended headers that times with fractions need."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000.25
            tar.addfile(member, io.BytesIO(data))


def write_status(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)


def write_shard(directory: Path, number: int, captions: Mapping[int, str], dead: int = 0) -> None:
    """One tar file with its status: image number -> caption, and links that failed."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    rows: list[dict[str, Any]] = []
    for place, (which, caption) in enumerate(captions.items()):
        key = f"{number:05d}{place:04d}"
        facts = {"url": f"https://example.org/{which}.jpg", "caption": caption, "key": key, "status": "success"}
        files[f"{key}.jpg"] = image(which)
        files[f"{key}.json"] = json.dumps(facts, indent=4).encode()
        files[f"{key}.txt"] = caption.encode()
        rows.append({"status": "success", "error_message": None, "url": facts["url"]})
    for place in range(dead):
        message = f"<urlopen error [Errno -2] '{place}.example.org'>"
        rows.append({"status": "failed_to_download", "error_message": message, "url": f"https://{place}.example.org"})
    write_tar(directory / f"{number:05d}.tar", files)
    write_status(directory / f"{number:05d}.parquet", rows)


def write_source(directory: Path, count: int = 40, per_tar: int = 20) -> list[str]:
    """Pairs whose captions differ by a number, every tenth but for upper case the one before. Returns the captions."""
    texts = [f"{CAPTIONS[number % len(CAPTIONS)]} {number}" for number in range(count)]
    for number in range(9, count, 10):
        texts[number] = texts[number - 1].upper()
    for shard, first in enumerate(range(0, count, per_tar)):
        write_shard(directory, shard, dict(enumerate(texts[first : first + per_tar], first)), dead=3)
    return texts


def tokenizer(path: Path) -> Tokenizer:
    made = train_bpe([*CAPTIONS, "0 1 2 3 4 5 6 7 8 9 10 11 12 20 30 a fox"] * 2, 270)
    made.save(path)
    return made


def data_config(root: Path, sources: Mapping[str, int], **changed: Any) -> DataConfig:
    """Pairs of sources below `root`, name -> pairs to draw."""
    tokenizer(root / "tokenizer.json")
    pairs = {name: PairSourceConfig(path=name, pairs=count, max_epochs=100) for name, count in sources.items()}
    options = {"seq_len": 48, "holdout_fraction": 0.25, "min_pixels": 1024, "max_pixels": 2048, **changed}
    return DataConfig(name="pairs", root=str(root), tokenizer=str(root / "tokenizer.json"), pairs=pairs, **options)
