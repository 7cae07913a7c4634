"""All suites by name."""

from __future__ import annotations

from collections.abc import Iterable

from parallel.errors import one_of
from trainer.config.say import did_you_mean
from trainer.evaluation.perplexity import PERPLEXITY
from trainer.evaluation.suite import Suite, SuiteError, folder_of
from trainer.evaluation.suites.general import choice as general_choice
from trainer.evaluation.suites.general import harness, instructions, mathematics
from trainer.evaluation.suites.science import biology, chemistry, materials, reasoner, signals
from trainer.evaluation.suites.vision import choice as vision_choice
from trainer.evaluation.suites.vision import drawing, exam, grounding

SUITES: tuple[Suite, ...] = (
    PERPLEXITY,
    *reasoner.SUITES,
    *exam.SUITES,
    *chemistry.SUITES,
    *materials.SUITES,
    *biology.SUITES,
    *vision_choice.SUITES,
    *signals.SUITES,
    *general_choice.SUITES,
    *mathematics.SUITES,
    *grounding.SUITES,
    *drawing.SUITES,
    *instructions.SUITES,
    *harness.SUITES,
)


def find(names: Iterable[str], suites: Iterable[Suite]) -> list[Suite]:
    """The suites of these names, written as in the report or as their folders. Raises SuiteError for unknown ones."""
    by_folder = {suite.folder: suite for suite in suites}
    found = []
    for name in names:
        folder = folder_of(name)
        if folder not in by_folder:
            text = f"suite={name}: there is no such suite; use {one_of(by_folder)}{did_you_mean(folder, by_folder)}"
            raise SuiteError(text, where="suite", value=name, allowed=tuple(by_folder))
        found.append(by_folder[folder])
    return list(dict.fromkeys(found))
