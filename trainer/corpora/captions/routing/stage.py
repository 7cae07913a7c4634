"""The stage `routing`: for each crop its subject, and the captioner that it is sent to.

A table of its own beside the crops: `part-00000.parquet` has a row for each crop of the part of that number, in the
same order, with the crop's id, so that no image is copied. The crops of a document are in one part, side by side.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.plans import keep_settings
from trainer.corpora.captions.reports import Count, StageReport
from trainer.corpora.captions.routing.model import BUILT_IN, TextModel
from trainer.corpora.captions.routing.routes import GENERAL, SCIENCE_CAPTIONER, Captioner, route
from trainer.corpora.captions.routing.subjects import SUBJECTS, Subject
from trainer.corpora.captions.tables import part_path, parts_of, read_part
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file
from trainer.storage.progress import OnProgress, Progress, ignore

STAGE = "routing"
DECIMALS = 6  # of a probability as it is stored
AT_ONCE = 512  # rows in memory


class Model(Protocol):
    def probabilities(self, captions: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float64]:
        """The crops of one document: a row for each, a column for each of SUBJECTS."""


@dataclass(frozen=True)
class Options:
    """captioners: in the order in which they are asked. default: for a crop that none takes. classifier: a Hugging Face
    directory in place of the built-in model."""

    captioners: tuple[Captioner, ...] = (SCIENCE_CAPTIONER,)
    default: str = GENERAL
    classifier: Path | None = None

    def identity(self) -> dict[str, Any]:
        """All that the result depends on besides the crops: the captioners, and the model by its hash, or by the names
        and sizes of a directory's files. Raises DataError for a directory that does not exist."""
        if self.classifier is None:
            model: Any = hashlib.sha256(BUILT_IN.read_bytes()).hexdigest()
        elif self.classifier.is_dir():
            model = [[path.name, path.stat().st_size] for path in sorted(self.classifier.iterdir())]
        else:
            remedy = "name a directory with a Hugging Face sequence classifier"
            raise DataError(
                f"{self.classifier} is not a directory; {remedy}", where=str(self.classifier), allowed=remedy
            )
        return {"captioners": [str(one) for one in self.captioners], "default": self.default, "subjects": model}


DEFAULTS = Options()


@dataclass(frozen=True)
class Route:
    """id: of the crop. subject: the most probable. science: the probability of all subjects but `other`.
    probabilities: of SUBJECTS. captioner: the name of the one that the crop is sent to."""

    id: str
    subject: Subject
    science: float
    probabilities: tuple[float, ...]
    captioner: str


def run_routing(directory: Path, crops: Path, options: Options, *, progress: OnProgress = ignore) -> StageReport:
    """Route all crops of the directory of an earlier stage, and return the account.

    Resumes after the last finished part, with the same result byte for byte; a finished stage is not done again.
    Raises DataError, OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keep_settings(directory, options.identity())
    if (report := StageReport.read(directory)) is not None:
        return report
    model, parts = _model(options), parts_of(crops)
    for number, part in enumerate(parts):
        if not (path := part_path(directory, number)).exists():
            _write(path, _routes(part, model, options))
        progress(Progress("routing", number + 1, len(parts), "records"))
    report = _account(directory, options)
    report.write(directory)
    return report


def read_routes(directory: Path) -> Iterator[Route]:
    """The rows of the stage's directory, in order. Raises DataError."""
    for path in parts_of(directory):
        yield from _read(path)


def captioners_of(directory: Path) -> Callable[[Path], dict[str, str]]:
    """A function from a part of the stage before to the captioners of its crops, by their ids; it raises DataError."""
    return lambda part: {row.id: row.captioner for row in _read(directory / part.name)}


def _read(path: Path) -> Iterator[Route]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=AT_ONCE):
                for row in batch.to_pylist():
                    yield Route(**{**row, "probabilities": tuple(row["probabilities"])})
    except (pa.ArrowException, KeyError, TypeError) as error:
        remedy = "remove it and run the stage again"
        raise DataError(f"{path} is corrupt ({error}); {remedy}", where=str(path), allowed=remedy) from error


def _model(options: Options) -> Model:
    if options.classifier is not None:
        from trainer.corpora.captions.routing.hugging_face import HuggingFaceModel

        return HuggingFaceModel(options.classifier)
    return TextModel.load()


def _routes(part: Path, model: Model, options: Options) -> Iterator[Route]:
    for _, found in groupby(read_part(part, images=False), key=lambda crop: crop.pdf):
        crops = [*found]
        rows = model.probabilities([crop.caption for crop in crops], [crop.context for crop in crops])
        for crop, values in zip(crops, rows, strict=True):
            row = tuple(round(float(value), DECIMALS) for value in values)
            subject = SUBJECTS[int(np.argmax(row))]
            science = round(sum(row) - row[SUBJECTS.index("other")], DECIMALS)
            taken_by = route(row, crop.kind, options.captioners, options.default)
            yield Route(crop.id, subject, science, row, taken_by)


def _write(path: Path, routes: Iterator[Route]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {
        "id": pa.string(), "subject": pa.string(), "science": pa.float64(),
        "probabilities": pa.list_(pa.float64(), len(SUBJECTS)), "captioner": pa.string(),
    }  # fmt: skip
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="ZSTD") as writer:
        rows: list[dict[str, Any]] = []
        for one in routes:
            rows.append(vars(one))
            if len(rows) == AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _account(directory: Path, options: Options) -> StageReport:
    """Nothing is dropped: every crop goes to some captioner."""
    crops = Count()
    subjects: Counter[str] = Counter()
    captioners: Counter[str] = Counter(dict.fromkeys(names_of(options), 0))
    for one in read_routes(directory):
        crops.keep()
        subjects[one.subject] += 1
        captioners[one.captioner] += 1
    facts = {
        "subjects": {subject: subjects[subject] for subject in SUBJECTS}, "captioners": dict(captioners),
        "thresholds": [str(one) for one in options.captioners],
    }  # fmt: skip
    return StageReport(STAGE, {"crops": crops}, facts)


def names_of(options: Options) -> Sequence[str]:
    """The captioners that a crop may be sent to."""
    return list(dict.fromkeys([*(one.name for one in options.captioners), options.default]))
