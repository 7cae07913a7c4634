import importlib.metadata
import itertools

import pytest

from trainer.corpora.packages import Source
from trainer.corpora.science.tables.builtin import SCIENCE

# PubChem's tables take 10 s to read; the toy's corpora have them as well.
SOURCES = [pytest.param(source, marks=[pytest.mark.slow] * (source.name == "pubchem")) for source in SCIENCE]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_source_reads_its_packages_in_groups_of_records(source: Source) -> None:
    for package in source.packages:
        if not list(importlib.metadata.distributions(name=package)):
            pytest.skip(f"{source.name} is made from the package {package}")
    assert all(path.is_file() for _, path in source.files())
    some = list(itertools.islice(source.read(), 3000))
    origins = [origin for origin, _ in itertools.groupby(document.origin for document in some)]
    assert len(origins) == len(set(origins)) > 3
    assert all(document.text.endswith("\n") for document in some)
