"""Task forms: what a document says of its signal, asks about it, and answers.

A document has one question, so that no answer is in the text before it. Forms and templates are drawn by a hash of the
recording.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trainer.corpora.science.draw import Draw
from trainer.corpora.science.recordings.labelled import Label
from trainer.data.media.readers.recording import Recording

NARRATION, OPEN, CHOICE, YES_NO = "narration", "open", "choice", "yes_no"
FORMS = (OPEN, CHOICE, YES_NO, NARRATION)
MOST_OPTIONS = 6
SHOWN_CHANNELS = 32  # names of more are not listed
FRAMES = (
    "Question: {question}\nAnswer: {answer}.\n",
    "{question}\n\n{answer}.\n",
    "Q: {question}\nA: {answer}.\n",
)


@dataclass(frozen=True)
class Templates:
    """The phrasings of a source. {phrase}: of the label that is asked for, or of all that there are.

    opposite: questions that are answered with yes if a label is absent, and that label.
    several: what a choice adds to its question where more than one option may be right.
    """

    what: tuple[str, ...]
    narration: tuple[str, ...]
    open: tuple[str, ...]
    choice: tuple[str, ...]
    yes_no: tuple[str, ...]
    opposite: tuple[tuple[str, str], ...] = ()
    several: str = ""
    shown: Callable[[str], str] = str  # a channel's name in a text


def described(recording: Recording, templates: Templates, setting: str, draw: Draw) -> str:
    """A line with kind, channels, unit, sampling rate, length and setting of a signal."""
    names = [templates.shown(name) for name in recording.channels]
    count = f"{len(names)} channel{'' if len(names) == 1 else 's'}"
    if not all(name.isdecimal() for name in names) and len(names) <= SHOWN_CHANNELS:
        count += f" ({', '.join(names)})"
    units = [*dict.fromkeys(unit for unit in recording.units if unit)]
    facts = [draw.one_of(templates.what, "what"), count + (f" in {', '.join(units)}" if units else "")]
    if recording.rate is not None:
        facts += [f"{recording.rate:g} Hz", f"{recording.steps / recording.rate:.3g} s"]
    facts += [setting] if setting else []
    if draw.below(2, "description"):
        return f"{', '.join(facts)}.\n"
    return f"Signal: {'; '.join(facts)}\n"


def task(form: str, labels: Sequence[str], known: Mapping[str, Label], templates: Templates, draw: Draw) -> str:
    """The text of a form about a signal with these labels. known: all labels of the data set."""
    if form == NARRATION:
        return f"{draw.one_of(templates.narration, form).format(phrase=_and([known[one].phrase for one in labels]))}\n"
    if form == OPEN:
        question, answer = draw.one_of(templates.open, form), _and([known[one].name for one in labels])
    elif form == CHOICE:
        question, answer = _choice(labels, known, templates, draw)
    else:
        question, answer = _yes_no(labels, known, templates, draw)
    frames = FRAMES[:2] if form == CHOICE else FRAMES  # no "A:" behind an option of that name
    return draw.one_of(frames, "frame").format(question=question, answer=answer)


def _choice(labels: Sequence[str], known: Mapping[str, Label], templates: Templates, draw: Draw) -> tuple[str, str]:
    others = draw.shuffled([label for label in known if label not in labels], "others")
    options = draw.shuffled([*labels, *others[: max(MOST_OPTIONS - len(labels), 1)]], "options")
    letters = dict(zip(options, string.ascii_uppercase, strict=False))
    lines = [draw.one_of(templates.choice, CHOICE) + templates.several]
    lines += [f"{letters[option]}. {known[option].name}" for option in options]
    return "\n".join(lines), _and(sorted(letters[label] for label in labels))


def _yes_no(labels: Sequence[str], known: Mapping[str, Label], templates: Templates, draw: Draw) -> tuple[str, str]:
    """A question about a label that there is, or about another one, as often."""
    place = draw.below(len(templates.yes_no) + len(templates.opposite), YES_NO)
    if place < len(templates.opposite):
        question, absent = templates.opposite[place]
        return question, "No" if absent in labels else "Yes"
    others = [label for label in known if label not in labels]
    there = not others or bool(draw.below(2, "there"))
    asked = draw.one_of(labels if there else others, "asked")
    question = templates.yes_no[place - len(templates.opposite)].format(phrase=known[asked].phrase)
    return question, "Yes" if there else "No"


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
