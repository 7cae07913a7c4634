"""Every scorer that OpenCompass 0.5.4 has as well: on 20 hand-made rows both give the same figures, to 1e-9.

`published.json` holds OpenCompass's figures for the rows. Ours are always compared with the file; with OpenCompass's
environment (peer.py) the slow test runs its code and compares the file with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.evaluation.scorers.cases import CASES, split, theirs
from tests.trainer.evaluation.scorers.replaced import replaced

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_opencompass(name: str) -> None:
    assert len(CASES[name].rows) == 20
    with replaced():
        found = CASES[name].ours(*split(CASES[name]))
    for figure, value in PUBLISHED[name].items():
        ours = found.value if figure == "value" else found.extra[figure]
        assert ours == pytest.approx(value, abs=1e-9), figure


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_opencompass_gives_the_stored_figures(name: str) -> None:
    found = theirs(name)
    assert found.keys() == PUBLISHED[name].keys()
    assert found == pytest.approx(PUBLISHED[name], abs=1e-9)
