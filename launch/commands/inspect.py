"""`octavo inspect`: the contents of a Hugging Face directory or a training checkpoint by part, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from math import prod
from pathlib import Path

from launch.progress import ProgressDisplay
from parallel.errors import UserError
from trainer.chat.template import find_template
from trainer.checkpoint.errors import CheckpointError
from trainer.config.coerce import to_dict
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError, report
from trainer.config.model import ModelConfig
from trainer.config.say import show
from trainer.storage.manifest import CHECKPOINT, MANIFEST, CorruptError
from trainer.storage.progress import Progress
from trainer.weights.beside.readers import readers
from trainer.weights.beside.side_files import TOKENIZERS, side_files
from trainer.weights.beside.tokenizer import find_tokenizer
from trainer.weights.hf_config import FUNCTION
from trainer.weights.hf_files import CONFIG, HuggingFaceError, open_directory
from trainer.weights.hf_survey import SourceModel, part_of, quantization, survey_directory
from trainer.weights.opened import locate, open_checkpoint
from trainer.weights.towers.config import multimodal_config_from_huggingface

UNCOUNTED = ("FP8 scales", "optimizer", "generators")  # not parameters
ORDER = (
    "embedding", "position tables", "norms", "attention", "router", "experts", "LM head", "FP8 scales", "vision",
    "projector", "time series", "common space", "adapters", "optimizer", "generators", "unknown",
)  # fmt: skip
LISTED = 10  # tensors that are named in a list
READERS = 4  # files that are compared at one time


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a directory of neither kind."""
    add = parser.add_argument
    add("directory", metavar="DIR", help="a Hugging Face directory, a run directory or one of its step-N directories")
    add("--verify", action="store_true", help="also read every file listed in manifest.json and compare its hash")
    options = parser.read(words)
    path = Path(options.directory)
    if (path / CONFIG).is_file():
        # no torch
        return partial(_inspect, path, lambda: _huggingface(survey_directory(open_directory(path))), options.verify)
    path = _step_directory(path)
    return partial(_inspect, path, lambda: _training(path), options.verify)


def _step_directory(path: Path) -> Path:
    """The training checkpoint that `path` names. Raises `CommandError`."""
    try:
        return locate(path)
    except CheckpointError:
        kinds = f"a Hugging Face directory (with {CONFIG}) or a run directory with a checkpoint (step-N)"
        found = f" contains neither {CONFIG} nor a checkpoint" if path.exists() else ": no such file or directory"
        raise CommandError(f"{path}{found}; give {kinds}", where=str(path), allowed=kinds) from None


def _inspect(path: Path, print_contents: Callable[[], bool], verify: bool) -> int:
    """Print the contents, and with `verify` the files that differ from their manifest.

    Exit code 0 for a directory that is complete (and, if verified, as it was written), 1 otherwise.
    """
    complete = False
    try:
        complete = print_contents()
    except BrokenPipeError:  # of the output
        raise
    except (UserError, OSError) as error:
        report(error)
        if isinstance(error, UserError) and error.where == str(path / MANIFEST):
            return 1  # nothing to verify the files with
    as_written = not verify or _as_written(path)
    return 0 if complete and as_written else 1


@dataclass
class Row:
    tensors: int = 0
    parameters: int = 0
    nbytes: int = 0
    dtypes: set[str] = field(default_factory=set)


Entry = tuple[str, str, tuple[int, ...], int]  # part, dtype, shape, bytes


def _huggingface(source: SourceModel) -> bool:
    directory = source.directory
    print(f"{directory.path}: Hugging Face directory, {len({t.file for t in directory.tensors.values()})} file(s)")
    unknown = set(source.unknown)
    entries = [
        ("unknown" if name in unknown else part_of(name), tensor.dtype, tensor.shape, tensor.nbytes)
        for name, tensor in directory.tensors.items()
    ]
    _print_table(entries)
    _print_model(_with_towers(source))
    spelling = "experts stacked" if any("gate_up_proj" in piece.name for piece in source.pieces) else "experts apart"
    print(f"names       {source.prefix}*, {spelling}")
    if quantised := quantization(directory):
        print(f"quantised   {quantised.get('quant_method')}, blocks of {quantised.get('weight_block_size')}")
    files = side_files(directory.path)
    _print_list("tokenizer", [name for name in TOKENIZERS if name in files])
    template = find_template(directory.path)
    print(f"template    {'none' if template is None else Path(template.where).name}")
    upright = any("gate_up_proj" in piece.name and not piece.transposed for piece in source.pieces)
    read_by = readers(directory.config, directory.tensors, files, upright=upright)
    _print_list("read by", [reader.line for reader in read_by])
    _print_list("missing", source.missing)
    _print_list("unknown", source.unknown)
    _print_list("mismatch", source.unfit)
    if source.ignored_keys:
        _print_list("ignored", [f"{CONFIG}: {key}, whose meaning is unknown" for key in source.ignored_keys])
    complete = not source.problems(towers=True)
    print("complete: every tensor that config.json calls for, and no other" if complete else "NOT complete")
    return complete


def _training(path: Path) -> bool:
    opened = open_checkpoint(path)
    print(f"{opened.path}: training checkpoint of step {opened.step}, saved with world size {opened.ranks}")
    parts = {f"model.{piece.parameter}": part_of(piece.name) for piece in opened.pieces}
    parts |= {f"model.{name}": "common space" for name in opened.common_space}
    parts |= {f"model.{name}": "adapters" for name in opened.adapters}
    entries: list[Entry] = []
    for name, facts in opened.stored.tensors.items():
        dtype, shape = facts.properties.dtype, tuple(facts.size)
        other = {"optim": "optimizer", "rng": "generators"}.get(name.partition(".")[0], "unknown")
        entries.append((parts.get(name, other), str(dtype).removeprefix("torch."), shape, prod(shape) * dtype.itemsize))
    _print_table(entries)
    _print_model(opened.model)
    _print_list("missing", opened.missing)
    _print_list("unknown", [name for name in opened.stored.tensors if name.startswith("model.") and name not in parts])
    _print_list("mismatch", opened.unfit)
    _print_tokenizer(opened.run_directory)
    if opened.lora.target != "none":
        lora = opened.lora
        print(
            f"adapters    lora.target={lora.target}, rank {lora.rank}, times {lora.scale:g}, on {opened.base['path']}"
        )
    complete = not opened.missing and not opened.unfit
    result = "complete by names, shapes and sizes; loading and exporting compare hashes too"
    print(result if complete else "NOT complete")
    return complete


def _print_tokenizer(run: Path) -> None:
    """The tokenizer and the chat template that the run kept, or why there are none."""
    found, why = find_tokenizer(run)
    if found is None:
        print(f"tokenizer   none: {why or 'the data are synthetic'}")
    else:
        print(f"tokenizer   {found.file}, {found.eos} ends a {'document' if found.chat is None else 'turn'}")
    template = find_template(run)
    print(f"template    {'none' if template is None else template.where}")


def _as_written(path: Path) -> bool:
    """Compare every file that the manifest lists with its hash, and print those that differ."""
    remedy = "inspect it without --verify"
    if not (path / MANIFEST).is_file():
        text = f"{path} has no {MANIFEST}, so its files have no hashes to compare with; {remedy}"
        report(CommandError(text, where=str(path / MANIFEST), allowed=remedy))
        return False
    try:
        files = CHECKPOINT.read(path)["files"]
    except CorruptError as damage:
        text = f"{damage}, so its hashes cannot be relied on; {remedy}"
        report(CommandError(text, where=str(path / MANIFEST), allowed=remedy))
        return False
    total, read, differing = sum(facts["size"] for facts in files.values()), 0, 0
    with ThreadPoolExecutor(READERS) as pool, ProgressDisplay() as progress:
        found = pool.map(lambda name: CHECKPOINT.check_file(path, name, files[name]), files)
        for facts, fault in zip(files.values(), found, strict=True):
            read += facts["size"]
            if fault is not None:
                differing += 1
                print(f"differs     {fault}")
            progress(Progress("comparing", read, total))
    result = f"{differing} of them differ" if differing else "every byte is as it was written"
    print(f"verify      {len(files)} files, {total / 1e9:,.3f} GB: {result}")
    return not differing


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
    for part, row in [*((part, rows[part]) for part in ORDER if part in rows), ("total", total)]:
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
    towers = {"model.image_token": model.image_token, "model.signal_token": model.signal_token}
    for name, tower in (("vision", model.vision), ("signals", model.signals)):
        towers |= {f"model.{name}.{key}": value for key, value in (to_dict(tower) if tower else {}).items()}
    if words := [f"{key}={show(value)}" for key, value in towers.items() if value is not None]:
        print("towers      " + " ".join(words))


def _with_towers(source: SourceModel) -> ModelConfig:
    """The model of a directory with its towers, or without where it has none, or others than ours."""
    try:
        return multimodal_config_from_huggingface(source.directory.config)
    except HuggingFaceError:
        return source.model


def _print_list(what: str, lines: Sequence[str]) -> None:
    more = f"\n            and {len(lines) - LISTED:,} more" if len(lines) > LISTED else ""
    print(f"{what:<12}" + ("\n            ".join(lines[:LISTED]) + more if lines else "none"))
