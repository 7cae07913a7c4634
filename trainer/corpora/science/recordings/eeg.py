"""EEG of people with major depressive disorder and of healthy controls, as Mumtaz and others published it.

One EDF file for each person and condition, whose name has the label: `MDD S1 EC.edf`, `H S15 EO.edf`. The published
files have double spaces in some names, numbers before others, and the same recording under the names of two people.

Source: W. Mumtaz and others, "A wavelet-based technique to predict treatment outcome for major depressive disorder",
PLOS ONE 12 (2017), and its data, "MDD Patients and Healthy Controls EEG Data (New)".
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from trainer.corpora.science.recordings.labelled import Item, Label, Survey, hold_out
from trainer.data.errors import DataError

NAME = re.compile(r"(?:\d+_)?(MDD|H)\s+S(\d+)\s+(EC|EO|TASK)", re.IGNORECASE)
LABELS = {
    "MDD": Label("major depressive disorder", "a person with major depressive disorder"),
    "H": Label("no disorder", "a healthy person"),
}
SETTINGS = {"EC": "with the eyes closed", "EO": "with the eyes open", "TASK": "during a visual oddball task"}
# Of the 10-20 system, against linked ears. Some files have two pairs of other electrodes beside them.
ELECTRODES = (
    "Fp1", "F3", "C3", "P3", "O1", "F7", "T3", "T5", "Fz", "Fp2", "F4", "C4", "P4", "O2", "F8", "T4", "T6", "Cz", "Pz",
)  # fmt: skip
CHANNELS = tuple(f"EEG {name}-LE" for name in ELECTRODES)


def survey(directory: Path) -> Survey:
    """The EDF files below a directory. Raises DataError if none has such a name."""
    items: list[Item] = []
    left_out = Counter[str]()
    for path in sorted(path for path in directory.rglob("*") if path.suffix.lower() == ".edf"):
        match = NAME.fullmatch(path.stem.strip())
        if match is None:
            left_out[f"files whose names have no label, such as {path.name!r}"] += 1
            continue
        group, number, condition = match[1].upper(), int(match[2]), match[3].upper()
        items.append(Item(path, str(path), f"{group} S{number}", (group,), SETTINGS[condition]))
    if not items:
        allowed = "files such as 'MDD S1 EC.edf' and 'H S2 EO.edf'"
        text = f"{directory} has no EDF file whose name has a label; give a directory with {allowed}"
        raise DataError(text, where=str(directory), value=sum(left_out.values()), allowed=allowed)
    return Survey(
        "MDD Patients and Healthy Controls EEG Data (Mumtaz and others)", LABELS, items,
        hold_out("eeg_depression", items),
        "A subject is a person; a tenth of those with each label is held out.", CHANNELS, left_out,
    )  # fmt: skip


def shown(channel: str) -> str:
    """A channel's name in a text: its electrode."""
    return channel.removeprefix("EEG ").removesuffix("-LE")
