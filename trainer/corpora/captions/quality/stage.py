"""The stage `quality`: captions that pass the rules, and then the discriminator, part by part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.corpora.captions.describe.rows import Row, read_rows, rows_path, write_rows
from trainer.corpora.captions.plans import keep_settings
from trainer.corpora.captions.quality.discriminator import Discriminator
from trainer.corpora.captions.quality.rules import Rules, reason_against
from trainer.corpora.captions.reports import Count, StageReport
from trainer.corpora.captions.tables import parts_of, read_part
from trainer.data.errors import DataError
from trainer.storage.progress import OnProgress, Progress, ignore

STAGE = "quality"
SCORE = "low score"


@dataclass(frozen=True)
class QualityOptions:
    """discriminator: the directory of a classifier; None: rules alone. threshold: the least score of a caption that is
    kept. label: of good captions; see `Discriminator`. device: of torch."""

    rules: Rules = field(default_factory=Rules)
    discriminator: Path | None = None
    threshold: float = 0.5
    label: str | None = None
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """JSON that changes with anything that decisions depend on."""
        return {
            "rules": asdict(self.rules),
            "discriminator": None if self.discriminator is None else _hash(self.discriminator),
            "threshold": self.threshold,
            "label": self.label,
        }


def run_quality(
    directory: Path, crops: Path, captions: Path, options: QualityOptions, *, progress: OnProgress = ignore
) -> StageReport:
    """Decide about every caption of the stage `captions`, and return the account.

    `directory` then has the rows of the captions, those that are dropped here with their reason, and `report.json`.
    crops: the directory of the crops' parts. A finished stage is not done again, a finished part neither.
    Raises DataError, OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    keep_settings(directory, options.identity())
    if (report := StageReport.read(directory)) is not None:
        return report
    parts = parts_of(crops)
    left = [part for part in parts if not rows_path(directory, part).exists()]
    scorer = None
    if left and options.discriminator is not None:
        scorer = Discriminator(options.discriminator, label=options.label, device=options.device)
    for number, part in enumerate(left, len(parts) - len(left)):
        rows = list(_judged(part, captions, options.rules))
        write_rows(rows_path(directory, part), rows if scorer is None else _scored(rows, scorer, options.threshold))
        progress(Progress(STAGE, number + 1, len(parts), "records", len(parts) - len(left)))
    report = _report(directory, parts)
    report.write(directory)
    return report


def _judged(part: Path, captions: Path, rules: Rules) -> Iterator[Row]:
    """The captions of a part, with the reasons of the rules. Raises DataError where rows and crops do not match."""
    path = rows_path(captions, part)
    rows = read_rows(path)
    for crop in read_part(part, images=False):
        row = next(rows, None)
        if row is None or row.id != crop.id:
            remedy = "run the stage captions again, in a new directory"
            text = f"{path} is not of the crops in {part}: {'it is too short' if row is None else row.id}; {remedy}"
            raise DataError(text, where=str(path), value=row and row.id, allowed=remedy)
        if not row.dropped:
            printed = f"{crop.caption}\n{crop.context}\n{crop.text}"
            reason = reason_against(row.caption, row.kind, instruction=row.instruction, printed=printed, rules=rules)
            yield replace(row, dropped=reason or "")


def _scored(rows: list[Row], scorer: Discriminator, threshold: float) -> list[Row]:
    passed = [row for row in rows if not row.dropped]
    scores = iter(scorer.score([row.caption for row in passed]))
    found = []
    for row in rows:
        if not row.dropped:
            score = next(scores)
            row = replace(row, score=score, dropped="" if score >= threshold else SCORE)  # a NaN is dropped
        found.append(row)
    return found


def _report(directory: Path, parts: list[Path]) -> StageReport:
    captions, kinds = Count(), dict[str, Count]()
    for part in parts:
        for row in read_rows(rows_path(directory, part)):
            for count in (captions, kinds.setdefault(row.kind, Count())):
                if row.dropped:
                    count.drop(row.dropped)
                else:
                    count.keep()
    counts = {"captions": captions, **{f"captions of {kind}s": count for kind, count in sorted(kinds.items())}}
    return StageReport(STAGE, counts)


def _hash(directory: Path) -> str:
    """A hash of the files of a directory. Raises DataError."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in directory.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        allowed = "a directory with a sequence classifier of transformers"
        raise DataError(
            f"{directory}: {error.strerror}; give {allowed}", where=str(directory), allowed=allowed
        ) from error
    return digest.hexdigest()
