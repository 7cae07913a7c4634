"""The texts of one real source, made once."""

import importlib.util

import pytest

from trainer.corpora.science.records import Table
from trainer.corpora.science.tables import chemistry
from trainer.corpora.science.texts import Text, texts


@pytest.fixture(scope="session")
def tables() -> list[Table]:
    if importlib.util.find_spec("chemicals") is None:
        pytest.skip("these tables are in the package chemicals: pip install -e '.[toy]'")
    materials = chemistry.materials()
    # Boiling points have verbs and questions of their own; the elements come without an authority.
    return [*chemistry.thermo(), *(table for table in materials if "Vaporization" in table.name), materials[-1]]


@pytest.fixture(scope="session")
def made(tables: list[Table]) -> list[Text]:
    return list(texts("thermo", tables, seed=0, tasks_per_record=4))
