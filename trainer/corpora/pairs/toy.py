"""The toy's pairs: drawings with captions as img2dataset would leave them, an index of each, and a tokenizer.

<cache_dir>/toy-pairs-<hash>/
    drawings/ drawings_zh/    sources: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json, and the index
    shapes/                   a set for zero-shot classification
    tokenizer.json
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.corpora.build import built_once, check_sources
from trainer.corpora.pairs.drawings import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, drawing
from trainer.corpora.pairs.index import index_pairs
from trainer.corpora.pairs.tars import SUCCESS
from trainer.data.pairs.zero_shot import CLASSES, TEMPLATES
from trainer.data.shards.files import TOKENIZER
from trainer.data.shards.tokenizer import train_bpe
from trainer.storage.progress import OnProgress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

FORMAT = 1  # raise it with any change of the output
PAIRS_IN_ALL, ZERO_SHOT_IMAGES, PER_TAR = 3000, 240, 750
DEAD = 20  # every so many links of the status file has failed
VOCAB_SIZE = 384
SOURCES = {"drawings": "english", "drawings_zh": "chinese"}
SHAPES_SET = "shapes"
SENTENCES = tuple(
    f"a {size} {colour} {{c}} at the {place} on {background}"
    for size, background, place, colour in zip([*SIZES] * 4, [*BACKGROUNDS] * 4, [*PLACES] * 2, COLOURS, strict=True)
)


def open_toy_pairs(data: DataConfig, progress: OnProgress = print_line) -> Path:
    """The directory with the toy's pairs, built first where it is missing. Safe to call from several processes.

    Raises DataError, also for a source or a set of `data` that the toy does not have.
    """
    check_sources("data.pairs", {name: source.path for name, source in data.pairs.items()}, tuple(SOURCES))
    check_sources("data.zero_shot", data.zero_shot, (SHAPES_SET,))
    made_from = json.dumps([FORMAT, PAIRS_IN_ALL, ZERO_SHOT_IMAGES, VOCAB_SIZE, SENTENCES])
    return built_once(data.cache_dir, "pairs", made_from, _build, progress, room=" with 20 MB free")


def _build(directory: Path) -> None:
    captions = []
    for seed, (source, language) in enumerate(SOURCES.items()):
        drawings = [drawing(number, seed) for number in range(PAIRS_IN_ALL // len(SOURCES))]
        texts = [getattr(each, language)() for each in drawings]
        captions += texts
        folder = directory / source
        folder.mkdir()
        for number, first in enumerate(range(0, len(drawings), PER_TAR)):
            some = zip(drawings[first : first + PER_TAR], texts[first : first + PER_TAR], strict=True)
            write_img2dataset(folder, number, [(each.jpeg(), text) for each, text in some])
        index_pairs(folder)
    folder = directory / SHAPES_SET
    folder.mkdir()
    (folder / CLASSES).write_text("\n".join(SHAPES), encoding="utf-8")
    (folder / TEMPLATES).write_text("\n".join(SENTENCES), encoding="utf-8")
    shown = [drawing(number, len(SOURCES)) for number in range(ZERO_SHOT_IMAGES)]
    files = [{"jpg": one.jpeg(), "cls": str([*SHAPES].index(one.shape)).encode()} for one in shown]
    write_tar(folder / "0.tar", {f"s{number:07d}": some for number, some in enumerate(files)})
    index_pairs(folder, texts=("cls",))
    train_bpe(captions, VOCAB_SIZE).save(directory / TOKENIZER)


def write_img2dataset(folder: Path, number: int, pairs: Iterable[tuple[bytes, str]]) -> None:
    """One shard as img2dataset's WebDataset writer leaves it: images that were downloaded, and the status of all."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    samples: dict[str, dict[str, bytes]] = {}
    rows: list[dict[str, Any]] = []
    for place, (image, caption) in enumerate(pairs):
        key, dead = f"{number:05d}{place:04d}", place % DEAD == DEAD - 1
        facts = {
            "url": f"https://example.org/{key}.jpg",
            "caption": caption,
            "key": key,
            "status": "failed_to_download" if dead else SUCCESS,
            "error_message": "HTTP Error 404: Not Found" if dead else None,
            "sha256": None if dead else hashlib.sha256(image).hexdigest(),
        }
        rows.append(facts)
        if not dead:
            text = json.dumps(facts, indent=4).encode()
            samples[key] = {"jpg": image, "json": text, "txt": caption.encode()}
    stem = folder / f"{number:05d}"
    write_tar(stem.with_suffix(".tar"), samples)
    parquet.write_table(arrow.Table.from_pylist(rows), stem.with_suffix(".parquet"))
    status = Counter(row["status"] for row in rows)
    stats = {"count": len(rows), "successes": status[SUCCESS], "failed_to_download": len(rows) - status[SUCCESS]}
    stem.with_name(f"{stem.name}_stats.json").write_text(json.dumps(stats))


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """Key -> extension -> bytes, in this order."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
