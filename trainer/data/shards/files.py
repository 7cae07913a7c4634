"""The files of a tokenized source, and the hashes that show corruption.

    <source>/manifest.json           what follows, byte for byte, and a checksum of itself
             tokenizer.json          the tokenizer that made it
             train-00000.bin, .idx   Megatron's token files, one pair per shard; heldout-00000... never trained on
             train-00000.media, .places  of documents with media: their bytes, and where their placeholders are
             train-00000.blocks      16 bytes of the SHA-256 of every MiB of .bin, .idx, .places and .media, in turn

The manifest holds each file's size and SHA-256. The block hashes let a start check some MiB of a corpus that it would
take hours to hash: a sampled block is checked as strictly as by a full pass.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallel.errors import Fault
from trainer.data.errors import DataError
from trainer.storage.manifest import CorruptError, Manifest

TOKENIZER = "tokenizer.json"
HASHED = (".bin", ".idx", ".places", ".media")  # suffixes of a shard's files, in the order of its block hashes
SHARDS = Manifest(version=1, hash_key="checksum", size_key="bytes", compact=True, ascii=False)
HASH_BLOCK, DIGEST = 1 << 20, 16  # bytes
REMEDY = "restore the file, or tokenize the source again"
Facts = dict[str, Any]


def canonical(value: Facts) -> bytes:
    """The bytes of a JSON value that its checksum is of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def hash_shard(stem: Path) -> dict[str, Facts]:
    """Hash a shard's files and write `<stem>.blocks`; size and SHA-256 of each, by file name."""
    files, digests = {}, bytearray()
    paths = [stem.with_name(stem.name + suffix) for suffix in HASHED]
    for path in paths[:2] + [path for path in paths[2:] if path.exists()]:
        whole = hashlib.sha256()
        for block in _blocks(path):
            whole.update(block)
            digests += hashlib.sha256(block).digest()[:DIGEST]
        files[path.name] = {"bytes": path.stat().st_size, "sha256": whole.hexdigest()}
    path = stem.with_name(stem.name + ".blocks")
    path.write_bytes(digests)
    files[path.name] = {"bytes": len(digests), "sha256": hashlib.sha256(digests).hexdigest()}
    return files


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            yield block


def num_blocks(shard: Facts) -> int:
    """Number of hashed blocks in a shard's files together."""
    return sum(blocks for _, blocks in _blocks_of(shard))


def _blocks_of(shard: Facts) -> Iterator[tuple[str, int]]:
    """(name, blocks) of the files with block hashes."""
    for suffix in HASHED:
        if (name := shard["stem"] + suffix) in shard["files"]:
            yield name, -(-shard["files"][name]["bytes"] // HASH_BLOCK)


def size_fault(directory: Path, shard: Facts) -> Fault | None:
    """Return the first file of a shard that is missing or has another size, or None."""
    for name, written in shard["files"].items():
        path = directory / name
        try:
            size = os.stat(path).st_size
        except OSError as error:
            return Fault(f"{path} cannot be read: {error.strerror}", str(path), None, REMEDY)
        if size != written["bytes"]:
            text = f"{path} has {size} bytes, but its manifest says {written['bytes']}: it is truncated or corrupt"
            return Fault(text, str(path), size, REMEDY)
    return None


def cut_at(directory: Path, shard: Facts) -> int | None:
    """Return the bytes of a shard's `.bin` if it alone is shorter than written, else None."""
    name = f"{shard['stem']}.bin"
    try:
        size = os.stat(directory / name).st_size
    except OSError:
        return None
    as_found = {**shard, "files": {**shard["files"], name: {"bytes": size}}}
    shorter = size < shard["files"][name]["bytes"]
    return size if shorter and size_fault(directory, as_found) is None else None


def hash_fault(directory: Path, shard: Facts) -> Fault | None:
    """Return the first file of a shard that is not as written, or None. Reads all of it."""
    if fault := size_fault(directory, shard):
        return fault
    for name, written in shard["files"].items():
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                return _corrupt(directory / name, "its SHA-256 is not the one in the manifest")
    return None


def _corrupt(path: Path, why: str) -> Fault:
    return Fault(f"{path} is corrupt: {why}", str(path), None, REMEDY)


def tokenizer_fault(directory: Path, written: Facts) -> Fault | None:
    """Return a fault if the tokenizer beside the shards is not the one that made them, else None."""
    path = directory / TOKENIZER
    if hashlib.sha256(path.read_bytes()).hexdigest() != written["sha256"]:
        return _corrupt(path, "its SHA-256 is not that of the tokenizer that made the shards")
    return None


def block_fault(directory: Path, shard: Facts, block: int) -> Fault | None:
    """Return a fault if one MiB of a shard is not as written, else None. block: counted through its files."""
    stem = shard["stem"]
    digests = (directory / f"{stem}.blocks").read_bytes()
    if hashlib.sha256(digests).hexdigest() != shard["files"][f"{stem}.blocks"]["sha256"]:
        return _corrupt(directory / f"{stem}.blocks", "its SHA-256 is not the one in the manifest")
    expected = digests[block * DIGEST : (block + 1) * DIGEST]
    blocks_of = [*_blocks_of(shard)]
    offset = block
    while offset >= blocks_of[0][1]:
        offset -= blocks_of.pop(0)[1]
    name = blocks_of[0][0]
    with (directory / name).open("rb") as file:
        file.seek(offset * HASH_BLOCK)
        found = hashlib.sha256(file.read(HASH_BLOCK)).digest()[:DIGEST]
    return None if found == expected else _corrupt(directory / name, f"in the MiB from byte {offset * HASH_BLOCK}")


def write_manifest(directory: Path, facts: Facts) -> Facts:
    """Write `manifest.json` with a checksum to the disk, and return it."""
    return SHARDS.write(directory, facts)


def read_manifest(directory: Path) -> Mapping[str, Any]:
    """A source's manifest, once its format and checksum are right. Raises DataError."""
    try:
        return SHARDS.read(directory)
    except CorruptError as damage:
        remedy = "give a directory that octavo tokenize wrote" if damage.missing else REMEDY
        raise DataError(f"{damage}; {remedy}", where=str(damage.path), value=damage.value, allowed=remedy) from None
