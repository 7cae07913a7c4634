"""Datasets of Hugging Face's library as Arrow files: those saved by `save_to_disk`, and those that a builder makes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.corpora.tokenize.columns import open_arrow
from trainer.corpora.tokenize.datasets_private import selects_rows
from trainer.corpora.tokenize.units import Rows, bad
from trainer.data.errors import DataError

TRAIN = "train"  # the split that is read unless another one is named
DICTIONARY, STATE = "dataset_dict.json", "state.json"


def is_saved(path: Path) -> bool:
    """Return True for a directory that `save_to_disk` wrote."""
    return (path / DICTIONARY).is_file() or (path / STATE).is_file()


def saved_dataset(path: Path, split: str | None) -> list[Path]:
    """The Arrow files of a dataset that `save_to_disk` wrote. split: None for `train`, or for a dataset without splits.

    Raises DataError, also for a split that the dataset does not have.
    """
    import datasets

    try:
        names = None
        if (path / DICTIONARY).is_file():
            names = json.loads((path / DICTIONARY).read_text())["splits"]
            name = TRAIN if split is None else split
            if name not in names:
                raise _no_split(str(path), name, names)
            path = path / name
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are of these, too
        problem = " ".join(str(error).split())
        raise bad(path, f"is not a dataset written by save_to_disk: {problem}", value=problem) from error
    if names is None and split is not None and split != str(saved.split):
        raise no_splits(path, split, "was saved without its splits")
    return list(arrow_files(saved, str(path)))


def built_dataset(
    builder: str, config: str | None, files: Sequence[Path], split: str | None = None, fields: Sequence[str] = ()
) -> list[Path | Rows]:
    """The Arrow files that `datasets.load_dataset` makes with a builder (csv, text, ...) or for a dataset's name.

    split: the rows to read, as in `train[:10%]` or `train+test`. fields: the columns that are wanted. Raises DataError,
    also for a column that is there twice.
    """
    import datasets

    name = f"--builder {builder}"
    try:
        built = datasets.load_dataset(builder, config, data_files=[str(file) for file in files] or None)
    except Exception as error:  # every builder has its own
        problem = " ".join(str(error).split())
        raise DataError(
            f"{name}: datasets.load_dataset failed: {problem}",
            where="--builder",
            value=builder,
            allowed=f"arguments that datasets.load_dataset accepts: {problem}",
        ) from error
    split = TRAIN if split is None else split
    try:
        wanted = "+".join(built) if split == "all" else split
        lengths = {key: len(dataset) for key, dataset in built.items()}
        parts = datasets.ReadInstruction.from_spec(wanted).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise _no_split(name, split, list(built), f" ({' '.join(str(error).split())})") from None
    found: list[Path | Rows] = []
    for part in parts:
        dataset = built[part.splitname]
        for field in fields:
            _check_column(name, field, dataset)
        whole = list(arrow_files(dataset, name))
        found += whole if (part.from_, part.to) == (0, len(dataset)) else _between(whole, part.from_, part.to)
    return found


def _between(files: Sequence[Path], first: int, last: int) -> Iterator[Rows]:
    """The rows first .. last - 1 of files one after the other."""
    start = 0
    for file in files:
        count = sum(batch.num_rows for batch in open_arrow(file)[0])
        low, high = max(first - start, 0), min(last - start, count)
        if low < high:
            yield Rows(file, low, high)
        start += count


def _check_column(name: str, field: str, dataset: Any) -> None:
    """Refuse a column whose texts the builder may have exchanged or changed. Raises DataError."""
    if field in dataset.column_names and f"{field}.1" in dataset.column_names:  # pandas' name for the second one
        remedy = "give the columns other names"
        raise DataError(
            f"{name}: there are two columns {field!r}, which it named {field} and {field}.1; {remedy}",
            where=name,
            value=field,
            allowed=remedy,
        )
    kind = dataset.data.schema.field(field).type if field in dataset.column_names else None
    if getattr(kind, "extension_name", None) == "arrow.json":  # "007" in it may have been the text or the number
        stored = (str(value) for batch in dataset.data.column(field).chunks for value in batch.storage.to_pylist())
        row = next((number for number, value in enumerate(stored, 1) if not value.startswith('"')), 1)
        remedy = "make every row a string, or name the files without --builder"
        raise DataError(
            f"{name}, row {row}: the column {field!r} has other values than strings, and a text such as 007 "
            f"would change; {remedy}",
            where=f"{name}, row {row}",
            value=field,
            allowed=remedy,
        )


def _no_split(name: str, split: str, names: Sequence[str], why: str = "") -> DataError:
    text = f"{name} has no split {split}{why}; use --split {one_of(names)}"
    return DataError(text, where="--split", value=split, allowed=tuple(names))


def no_splits(path: Path, split: str, why: str) -> DataError:
    """An error about a split of something that has none."""
    text = f"--split {split}: {path} {why}; leave --split out to read all of it"
    return DataError(text, where="--split", value=split, allowed="no --split")


def arrow_files(dataset: Any, name: str) -> Iterator[Path]:
    if selects_rows(dataset):
        remedy = "save it again after dataset.flatten_indices()"
        raise bad(name, f"is a selection of rows: {remedy}", allowed=remedy)
    return (Path(file["filename"]) for file in dataset.cache_files)
