"""The card of documents about recordings: where they are from, what they hold, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.say import counted
from trainer.corpora.science.recordings.documents import Made
from trainer.corpora.science.recordings.forms import FORMS
from trainer.corpora.science.recordings.labelled import Survey
from trainer.corpora.science.recordings.sources import RecordedSource

LICENCE = (
    "The files do not carry their licence, and this card does not grant one. Check the terms of the copy that you "
    "downloaded, and whether the people or animals recorded, their consent and your country's law allow the use."
)
NAMED = 20  # channels of a kind


def card(source: RecordedSource, survey: Survey, made: Made, seconds: float | None, options: str) -> str:
    """The card as Markdown. seconds: of the longest excerpt. options: those of the command that made the documents."""
    return "\n".join([*_lines(source, survey, made, seconds, options), ""])


def _lines(source: RecordedSource, survey: Survey, made: Made, seconds: float | None, options: str) -> Iterator[str]:
    yield f"# {source.name}"
    yield ""
    yield f"Task: {source.title}. Data set: {survey.layout}. Made by `octavo science {options}`."
    yield ""
    yield f"**Licence: to be checked by you.** {LICENCE}"
    yield ""
    recordings = f"{counted(made.recordings, 'recording')}, {made.seconds / 60:,.1f} minutes"
    yield f"## {counted(made.documents, 'document')} of {recordings}"
    yield ""
    yield "| label | | train | held out |"
    yield "| --- | --- | --- | --- |"
    for key, label in survey.labels.items():
        train, held = made.labels["train", key], made.labels["heldout", key]
        yield f"| {key} | {label.name} | {train:,} | {held:,} |"
    train, held = (len(made.subjects[split]) for split in ("train", "heldout"))
    yield f"| subjects | | {train:,} | {held:,} |"
    yield ""
    yield f"{survey.split} No subject is in both splits."
    yield ""
    yield f"Forms: {', '.join(f'{made.forms[form]:,} {form}' for form in FORMS if made.forms[form])}."
    yield ""
    yield "## Signals"
    yield ""
    yield "Sampling rate, channels and units are those of the files; nothing is resampled or filtered."
    if seconds:
        yield f"Recordings of over {seconds:g} s are cut into excerpts of equal length, and none is left out."
    yield ""
    for (rate, channels, units), count in made.kinds.most_common():
        names = ", ".join(channels[:NAMED]) + (", ..." if len(channels) > NAMED else "")
        unit = ", ".join(dict.fromkeys(unit for unit in units if unit)) or "none"
        hertz = "unknown" if rate is None else f"{rate:g} Hz"
        of_files = f"{hertz}; {counted(len(channels), 'channel')} ({names}); unit {unit}"
        yield f"- {counted(count, 'recording')}: {of_files}"
    yield ""
    yield "## Left out"
    yield ""
    reasons = [*made.left_out.most_common(), *([("recordings that cannot be read", len(made.bad))] if made.bad else [])]
    yield from (f"- {count:,} {reason}" for reason, count in reasons)
    if not reasons:
        yield "Nothing."
