"""The subjects that a crop can be about."""

from typing import Literal, get_args

Subject = Literal["life", "chemistry", "earth", "materials", "physics", "mathematics", "other"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
PLACES: dict[str, int] = {subject: place for place, subject in enumerate(SUBJECTS)}
SCIENCE: tuple[Subject, ...] = tuple(subject for subject in SUBJECTS if subject != "other")
