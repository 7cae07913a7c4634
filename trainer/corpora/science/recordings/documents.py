"""Documents from a data set of labelled recordings: excerpts, each with a text about it."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.corpora.science.draw import Draw
from trainer.corpora.science.recordings.forms import FORMS, described, task
from trainer.corpora.science.recordings.labelled import Item, Survey
from trainer.corpora.science.recordings.sources import RecordedSource
from trainer.data.errors import DataError
from trainer.data.media.readers.read import read_recording
from trainer.data.media.readers.recording import Recording, checked, excerpt

NEEDS = ".[signals]"  # allowed by errors about packages that are not installed
Line = dict[str, Any]


@dataclass
class Made:
    """Counts of what became documents. labels: documents by (split, label). subjects: by split. kinds: recordings by
    (sampling rate, channels, units). left_out: by the reason. bad: (place, problem) of recordings that cannot be read.
    """

    documents: int = 0
    recordings: int = 0
    seconds: float = 0.0
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, set[str]] = field(default_factory=lambda: {"train": set(), "heldout": set()})
    kinds: Counter[tuple[float | None, tuple[str, ...], tuple[str, ...]]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def held_out(self) -> list[str]:
        """The origins of held-out documents."""
        return sorted(self.subjects["heldout"])


def documents(
    source: RecordedSource,
    survey: Survey,
    made: Made,
    *,
    root: Path | None,
    seed: int,
    tasks: int,
    seconds: float | None,
    skip: bool,
    done: Callable[[int], None] = lambda count: None,
) -> Iterator[Line]:
    """The lines of a data set: content (a signal and a text), origin, split, form and labels. Counts go to `made`.

    A recording longer than `seconds` is cut into excerpts of equal length, so that nothing of it is left out. Of
    recordings with the same bytes the first is used. root: directory that paths are relative to; None: absolute paths.
    tasks: forms for each excerpt. skip: leave out recordings that cannot be read, instead of failing. done: called with
    the number of recordings so far. Raises DataError.
    """
    made.left_out.update(survey.left_out)
    seen: dict[bytes, Item] = {}
    whole = _Whole(survey.channels)
    for number, item in enumerate(survey.items, 1):
        done(number)
        try:
            recording = _of(item, whole.read(item))
            spans = _spans(item, recording, seconds)
            cut = len(spans) > 1 or item.span is not None
            pieces = [_piece(item, whole.read(item), span) for span in spans] if cut else [recording]
        except DataError as error:
            if error.allowed == NEEDS:  # no fault of the recording
                raise
            if not skip:
                problem = error.faults[0].text
                text = f"{problem} ({item.where}); repair it, or leave such recordings out with --bad-media skip"
                raise DataError(text, where=item.where, value=error.value, allowed="--bad-media skip") from error
            made.bad.append((item.where, error.faults[0].text))
            continue
        digest = hashlib.sha256(recording.to_bytes()).digest()
        if (twin := seen.setdefault(digest, item)) is not item:
            if set(twin.labels) != set(item.labels):
                text = f"{item.where}: has the values of {twin.where}, and other labels; correct one of them"
                if not skip:
                    raise DataError(text, where=item.where, value=item.labels, allowed=twin.labels)
                made.bad.append((item.where, text))
            else:
                made.left_out[f"recordings with the values of another, such as {item.where} and {twin.where}"] += 1
            continue
        split = "heldout" if item.subject in survey.held_out else "train"
        origin = f"{source.name}/{item.subject}"
        made.recordings += 1
        made.seconds += sum(length for _, length in spans)
        made.subjects[split].add(origin)
        made.kinds[recording.rate, recording.channels, recording.units] += 1
        for place, (span, piece) in enumerate(zip(spans, pieces, strict=True)):
            part = _part(item, survey, root) | (_rounded(span) if cut else {})
            draw = Draw(str(seed), source.name, item.subject, f"{item.path.name} {item.span}", str(place))
            for form in draw.shuffled(FORMS, "forms")[:tasks]:
                drawn = draw.part(form)
                text = described(piece, source.templates, item.setting, drawn)
                text += task(form, item.labels, survey.labels, source.templates, drawn)
                made.documents += 1
                made.forms[form] += 1
                made.labels.update((split, label) for label in item.labels)
                yield {
                    "content": [part, {"type": "text", "text": text}], "origin": origin, "split": split, "form": form,
                    "labels": [*item.labels],
                }  # fmt: skip
    if not made.documents:
        reasons = ", ".join(made.left_out) or "its tables name none"
        text = f"{survey.layout}: no recording is left to make documents of ({reasons})"
        raise DataError(text, where="--recordings", value=reasons, allowed="recordings with labels")


class _Whole:
    """Whole recordings; the last one stays in memory, since the next item may be a span of it."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self._channels, self._path = channels, Path()
        self._recording: Recording | None = None

    def read(self, item: Item) -> Recording:
        if self._recording is None or self._path != item.path:
            self._recording = None  # frees it before the next is read
            if not item.path.is_file():
                raise DataError(f"{item.path} does not exist", where=item.where, value=str(item.path), allowed="a file")
            self._recording = read_recording(item.path, where=str(item.path), channels=self._channels)
            self._path = item.path
        return self._recording


def _of(item: Item, whole: Recording) -> Recording:
    """The recording of an item: all of a file, or its span, which ends with the file at the latest."""
    if item.span is None:
        return whole
    start, end = item.span
    if whole.rate is not None:
        end = min(end, whole.steps / whole.rate)
    return excerpt(whole, start, end - start, item.where)


def _spans(item: Item, recording: Recording, longest: float | None) -> list[tuple[float, float]]:
    """(start, seconds) of the excerpts, counted from the start of the file."""
    start = 0.0 if item.span is None else item.span[0]
    if recording.rate is None:
        if longest is None:
            return [(start, 0.0)]
        text = f"{item.where}: its sampling rate is unknown, so it cannot be cut into excerpts"
        raise DataError(text, where=item.where, value=None, allowed="a sampling rate")
    length = recording.steps / recording.rate
    count = 1 if longest is None else max(math.ceil(length / longest - 1e-9), 1)
    return [(start + place * length / count, length / count) for place in range(count)]


def _part(item: Item, survey: Survey, root: Path | None) -> Line:
    path = item.path.resolve() if root is None else os.path.relpath(item.path.resolve(), root.resolve())
    return {"type": "signal", "path": str(path)} | ({"channels": [*survey.channels]} if survey.channels else {})


def _piece(item: Item, whole: Recording, span: tuple[float, float]) -> Recording:
    """The excerpt as `octavo tokenize` reads it."""
    return checked(excerpt(whole, **_rounded(span), where=item.where), item.where)


def _rounded(span: tuple[float, float]) -> dict[str, float]:
    """The excerpt of a part, to the microsecond."""
    return {"start": round(span[0], 6), "seconds": round(span[1], 6)}
