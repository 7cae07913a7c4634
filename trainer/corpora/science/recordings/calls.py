"""Calls of common marmosets: MarmAudio, or InfantMarmosetsVox.

MarmAudio has a file for each call, `Vocalizations/PARENT/FILE`, and `Annotations.tsv`; its callers are unknown. It is
published as FLAC, for which the table has the names, and unpacked to WAV by its own scripts. InfantMarmosetsVox has
WAV files of minutes, `data/twin_N/NAME.wav`, and `labels.csv` with the time, type and caller of each call.

Sources: C. Lamothe and others, "A large annotated dataset of vocalizations by common marmosets", Scientific Data 12
(2025); E. Sarkar and M. Magimai-Doss, "Can Self-Supervised Neural Representations Pre-Trained on Human Speech
distinguish Animal Callers?", Interspeech (2023).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from trainer.corpora.science.recordings.labelled import (
    Item,
    Label,
    Survey,
    hold_out,
    number_in,
    rows_of,
    unknown_label,
    whole_in,
)
from trainer.data.errors import DataError

ANNOTATIONS, LABELS = "Annotations.tsv", "labels.csv"
UNTYPED = {"vocalization": "calls without a type", "noise": "noises"}
DATE = ("year", "month", "day")


def _call(name: str) -> Label:
    return Label(name, f"{'an' if name[0] in 'aeiou' else 'a'} {name} call")


CRY = Label("infant cry", "the cry of an infant")
MARMAUDIO = {
    **{name: _call(name) for name in ("phee", "seep", "trill", "tsik", "twitter")},
    "infant cry": CRY,
    "infant": CRY,
}
# By their numbers in labels.csv
INFANTS = (
    "pre-phee peep", "phee", "twitter", "trill", "trill-phee", "tsik-tse", "egg", "phee-cry", "trill-twitter",
    "phee-twitter", "peep",
)  # fmt: skip
NOT_CALLS = {11: "silences", 12: "noises"}
TWIN = re.compile(r"_twin(\d+)_", re.IGNORECASE)


def survey(directory: Path) -> Survey:
    """The calls of either data set. Raises DataError without a table of labels, and for an unknown label."""
    if (directory / ANNOTATIONS).is_file():
        return _marmaudio(directory)
    if (directory / LABELS).is_file():
        return _infants(directory)
    remedy = f"give the directory of MarmAudio, with {ANNOTATIONS}, or of InfantMarmosetsVox, with {LABELS}"
    text = f"{directory} has no table of labels; {remedy}"
    raise DataError(text, where=str(directory), allowed=(ANNOTATIONS, LABELS))


def _marmaudio(directory: Path) -> Survey:
    days: list[Item] = []
    undated: list[Item] = []
    left_out = Counter[str]()
    for where, row in rows_of(directory / ANNOTATIONS, "\t", ("parent_name", "file_name", "label")):
        label = row["label"].strip().lower().replace("_", " ")
        if label in UNTYPED:
            left_out[UNTYPED[label]] += 1
            continue
        if label not in MARMAUDIO:
            raise unknown_label(where, row["label"], (*MARMAUDIO, *UNTYPED))
        path = directory / "Vocalizations" / row["parent_name"] / row["file_name"]
        unpacked = path.with_suffix(".wav")
        dated = all(row.get(column) for column in DATE)
        subject = row["parent_name"]
        if dated:
            subject = "day " + "-".join(f"{whole_in(row, column, where):02}" for column in DATE)
        label = "infant cry" if label == "infant" else label
        (days if dated else undated).append(Item(unpacked if unpacked.is_file() else path, where, subject, (label,)))
    if days and undated:  # a day could be in both splits under two names
        left_out["calls without a date, beside others with one"] += len(undated)
    items = days or undated
    labels = {name: label for name, label in MARMAUDIO.items() if name != "infant"}
    return Survey(
        "MarmAudio", labels, items, hold_out("marmoset_calls", items),
        "The callers are unknown. A subject is a day of recording; a tenth of the days is held out, so neighbouring "
        "calls are in one split; an animal may be in both.",
        left_out=left_out,
    )  # fmt: skip


def _infants(directory: Path) -> Survey:
    items: list[Item] = []
    left_out = Counter[str]()
    for where, row in rows_of(directory / LABELS, ",", ("filename", "start", "end", "calltype", "caller")):
        number = whole_in(row, "calltype", where)
        if number in NOT_CALLS:
            left_out[NOT_CALLS[number]] += 1
            continue
        if not 0 <= number < len(INFANTS):
            raise unknown_label(where, row["calltype"], [*map(str, range(len(INFANTS))), *map(str, NOT_CALLS)])
        twin = TWIN.search(row["filename"])
        if twin is None:
            text = f"{where}: the file {row['filename']!r} does not name its pair of twins"
            allowed = "such as 20160907_Twin1_marmoset1"
            raise DataError(text, where=where, value=row["filename"], allowed=allowed)
        path = directory / "data" / f"twin_{twin[1]}" / f"{row['filename']}.wav"
        span = number_in(row, "start", where), number_in(row, "end", where)
        items.append(Item(path, where, f"twins {twin[1]}", (INFANTS[number],), span=span))
    # Neighbouring calls of a file follow each other, so that each file is read once.
    items.sort(key=lambda item: (item.path, item.span))
    return Survey(
        "InfantMarmosetsVox", {name: _call(name) for name in INFANTS}, items, hold_out("marmoset_calls", items),
        "A subject is a pair of twins, who are heard in each other's recordings; one pair at least is held out.",
        left_out=left_out,
    )  # fmt: skip
