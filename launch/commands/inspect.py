"""`octavo inspect`: what a Hugging Face directory or a training checkpoint holds, part by part, and what it lacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path

from trainer.config.model import ModelConfig
from trainer.config.say import show
from trainer.storage.manifest import MANIFEST, Damaged, read_manifest, verify_file
from trainer.weights.hf_config import FUNCTION
from trainer.weights.hf_files import CONFIG, HuggingFaceError, open_directory
from trainer.weights.hf_survey import Source, look_at, part_of, quantization

UNCOUNTED = ("FP8 scales", "optimizer", "generators")  # no parameters
ORDER = (
    "embedding", "position tables", "norms", "attention", "router", "experts", "LM head", "FP8 scales", "vision",
    "projector", "time series", "optimizer", "generators", "unknown",
)  # fmt: skip
LISTED = 10  # tensors of one kind of trouble that are named
READERS = 4  # files that are compared at one time
BETWEEN = 5.0  # seconds between two lines of progress


def inspect_directory(directory: str, *, verify: bool = False) -> int:
    """Print the table. `verify`: also read every file that manifest.json lists, and print which differ from what it
    says. Exit code 0 for a directory that is whole (and, if asked for, is as it was written), 1 otherwise."""
    path, whole = Path(directory), False
    try:
        if (path / CONFIG).is_file():  # no torch for these
            whole = _huggingface(look_at(open_directory(path)))
        else:
            path = _located(path)
            whole = _training(path)
    except HuggingFaceError as error:
        print(f"error: {error}", file=sys.stderr)
    as_written = not verify or _as_written(path)
    return 0 if whole and as_written else 1


@dataclass
class Row:
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    dtypes: set[str] = field(default_factory=set)


Entry = tuple[str, str, tuple[int, ...], int]  # part, dtype, shape, bytes


def _huggingface(source: Source) -> bool:
    directory = source.directory
    print(f"{directory.path}: Hugging Face directory, {len({t.file for t in directory.tensors.values()})} file(s)")
    unknown = set(source.unknown)
    entries = [
        ("unknown" if name in unknown else part_of(name), tensor.dtype, tensor.shape, tensor.nbytes)
        for name, tensor in directory.tensors.items()
    ]
    _print_table(entries)
    _print_model(source.model)
    spelling = "experts stacked" if any("gate_up_proj" in piece.name for piece in source.pieces) else "experts apart"
    print(f"names       {source.prefix}*, {spelling}")
    if quantised := quantization(directory):
        print(f"quantised   {quantised.get('quant_method')}, blocks of {quantised.get('weight_block_size')}")
    _print_list("missing", source.missing)
    _print_list("unknown", source.unknown)
    _print_list("unfit", source.unfit)
    problems = source.problems(towers=True)
    print("whole: every tensor that config.json calls for is there, and no other" if not problems else "NOT whole")
    return not problems


def _located(path: Path) -> Path:
    from trainer.checkpoint.store import CheckpointError
    from trainer.weights.opened import locate  # imports torch

    try:
        return locate(path)
    except CheckpointError:
        text = f"neither a Hugging Face directory (no {CONFIG}) nor a run directory with a checkpoint (no step-N)"
        raise HuggingFaceError(f"{path}: {text}") from None


def _training(path: Path) -> bool:
    from trainer.checkpoint.store import CheckpointError
    from trainer.weights.opened import open_checkpoint

    try:
        opened = open_checkpoint(path)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(f"{opened.path}: training checkpoint of step {opened.step}, written by {opened.ranks} rank(s)")
    parts = {f"model.{piece.parameter}": part_of(piece.name) for piece in opened.pieces}
    entries: list[Entry] = []
    for name, facts in opened.state.tensors.items():
        dtype, shape = facts.properties.dtype, tuple(facts.size)
        other = {"optim": "optimizer", "rng": "generators"}.get(name.partition(".")[0], "unknown")
        entries.append((parts.get(name, other), str(dtype).removeprefix("torch."), shape, prod(shape) * dtype.itemsize))
    _print_table(entries)
    _print_model(opened.model)
    _print_list("missing", opened.missing)
    _print_list("unknown", [name for name in opened.state.tensors if name.startswith("model.") and name not in parts])
    _print_list("unfit", opened.unfit)
    whole = not opened.missing and not opened.unfit
    print("whole by names, shapes and sizes; loading and exporting compare hashes too" if whole else "NOT whole")
    return whole


def _as_written(path: Path) -> bool:
    """Compare every file of the manifest with it, byte for byte, and print what differs."""
    if not (path / MANIFEST).is_file():
        print(f"verify      there is no {path / MANIFEST}: nothing says what the files' bytes should be")
        return False
    try:
        files = read_manifest(path)["files"]
    except Damaged as damage:
        print(f"verify      {damage}: its hashes say nothing of the files")
        return False
    total, read, told, faults = sum(facts["size"] for facts in files.values()), 0, time.perf_counter(), 0
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: verify_file(path, name, files[name]), files)
        for facts, fault in zip(files.values(), found, strict=True):
            read += facts["size"]
            if fault is not None:
                faults += 1
                print(f"differs     {fault}")
            if time.perf_counter() - told >= BETWEEN:
                told = time.perf_counter()
                print(f"{read / 1e9:,.1f} of {total / 1e9:,.1f} GB compared", file=sys.stderr)
    said = f"{faults} of them differ" if faults else "every byte is as it was written"
    print(f"verify      {len(files)} files, {total / 1e9:,.3f} GB: {said}")
    return not faults


def _print_table(entries: Iterable[Entry]) -> None:
    rows: dict[str, Row] = {}
    for part, dtype, shape, nbytes in entries:
        row = rows.setdefault(part, Row())
        row.tensors += 1
        row.parameters += prod(shape) if part not in UNCOUNTED else 0
        row.nbytes += nbytes
        row.dtypes.add(dtype)
    total = Row(
        sum(row.tensors for row in rows.values()),
        sum(row.parameters for row in rows.values()),
        sum(row.nbytes for row in rows.values()),
    )
    unit, size = ("GB", 1e9) if total.nbytes >= 1e9 else ("MB", 1e6)
    print(f"\n{'part':<20}{'tensors':>9}{'parameters':>19}{unit:>14}  dtypes")
    for part, row in [*((part, rows[part]) for part in ORDER if part in rows), ("in all", total)]:
        dtypes = " ".join(sorted(row.dtypes))
        print(f"{part:<20}{row.tensors:>9,}{row.parameters:>19,}{row.nbytes / size:>14,.3f}  {dtypes}".rstrip())
    print()


def _print_model(model: ModelConfig) -> None:
    print(
        f"experts     {model.num_experts} in {model.router_groups} group(s), {model.experts_per_token} per token, "
        f"in each of {model.num_layers} layers"
    )
    keys: Sequence[str] = [f.name for f in fields(model) if f.name in (*FUNCTION, "max_position")]
    print("model       " + " ".join(f"model.{key}={show(getattr(model, key))}" for key in keys))


def _print_list(what: str, lines: Sequence[str]) -> None:
    more = f"\n            and {len(lines) - LISTED:,} more" if len(lines) > LISTED else ""
    print(f"{what:<12}" + ("\n            ".join(lines[:LISTED]) + more if lines else "none"))
