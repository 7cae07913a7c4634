"""The captioner that a crop is sent to, from the probabilities of its subjects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.corpora.captions.routing.subjects import SCIENCE, SUBJECTS, Subject
from trainer.data.errors import DataError

FORM = "NAME=SUBJECT,...:THRESHOLD"
# Thresholds of science are multiplied by this: displayed formulas are rare outside science, and have little text.
KIND_SCALE = {"formula": 0.5}


@dataclass(frozen=True)
class Captioner:
    """Takes a crop whose probability of being about one of `subjects` is above `threshold` (0 to 1)."""

    name: str
    subjects: tuple[Subject, ...]
    threshold: float

    def __str__(self) -> str:
        return f"{self.name}={','.join(self.subjects)}:{self.threshold:g}"


SCIENCE_CAPTIONER = Captioner("science", SCIENCE, 0.5)
GENERAL = "general"


def captioner(text: str) -> Captioner:
    """`NAME=SUBJECT,...:THRESHOLD`, or `NAME=science:THRESHOLD` for all subjects but `other`. Raises DataError."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)=([a-z,]+):([0-9.]+)", text)
    words = found[2].replace("science", ",".join(SCIENCE)).split(",") if found else []
    subjects = tuple(subject for subject in SUBJECTS if subject in words)
    try:
        threshold = float(found[3]) if found else -1.0
    except ValueError:
        threshold = -1.0
    if not found or not subjects or not {*words} <= {*SUBJECTS} or not 0 <= threshold <= 1:
        allowed = f"{FORM}, with subjects of {', '.join(SUBJECTS)} or science, and a threshold from 0 to 1"
        raise DataError(f"--route={text}: use {allowed}", where="--route", value=text, allowed=allowed)
    return Captioner(found[1], subjects, threshold)


def route(probabilities: Sequence[float], kind: str, captioners: Sequence[Captioner], default: str = GENERAL) -> str:
    """The name of the first captioner that takes the crop, else `default`. probabilities: one for each of SUBJECTS."""
    scale = KIND_SCALE.get(kind, 1.0)
    for one in captioners:
        share = sum(probabilities[SUBJECTS.index(subject)] for subject in one.subjects)
        if share > one.threshold * (1.0 if "other" in one.subjects else scale):
            return one.name
    return default
