import pytest

from tests.trainer.corpora.captions.papers import HELD_OUT, TUNED, write_papers


@pytest.fixture(scope="session")
def papers(tmp_path_factory):
    """Made papers of two pages in two looks: pages turned and cut, plots with letters and with outlines."""
    looks = (TUNED[3], HELD_OUT[3])
    return write_papers(tmp_path_factory.mktemp("papers"), looks, 1, pages=2)
