"""`octavo inspect`: what a Hugging Face directory or a training checkpoint holds, part by part, and what it lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path

from trainer.checkpoint.huggingface.config import FUNCTION
from trainer.checkpoint.huggingface.files import CONFIG, HuggingFaceError, open_directory
from trainer.checkpoint.huggingface.survey import Source, look_at, part_of, quantization
from trainer.model_config import ModelConfig
from trainer.schema import show

UNCOUNTED = ("FP8 scales", "optimizer", "generators")  # no parameters
ORDER = (
    "embedding", "position tables", "norms", "attention", "router", "experts", "LM head", "FP8 scales", "vision",
    "projector", "time series", "optimizer", "generators", "unknown",
)  # fmt: skip
LISTED = 10  # tensors of one kind of trouble that are named


def inspect_directory(directory: str) -> int:
    """Print the table. Exit code 0 for a directory that is whole, 1 otherwise."""
    path = Path(directory)
    try:
        if (path / CONFIG).is_file():  # no torch for these
            return _huggingface(look_at(open_directory(path)))
        return _training(path)
    except HuggingFaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


@dataclass
class Row:
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    dtypes: set[str] = field(default_factory=set)


Entry = tuple[str, str, tuple[int, ...], int]  # part, dtype, shape, bytes


def _huggingface(source: Source) -> int:
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
    return 1 if problems else 0


def _training(path: Path) -> int:
    from trainer.checkpoint.opened import locate, open_checkpoint  # imports torch
    from trainer.checkpoint.store import CheckpointError

    try:
        locate(path)
    except CheckpointError:
        text = f"neither a Hugging Face directory (no {CONFIG}) nor a run directory with a checkpoint (no step-N)"
        print(f"error: {path}: {text}", file=sys.stderr)
        return 1
    try:
        opened = open_checkpoint(path)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
    return 0 if whole else 1


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
