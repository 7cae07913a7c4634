"""One small corpus for all data tests, built once per run."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from trainer.data.corpus import Corpus, open_corpus
from trainer.data.toy import ToyData


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """The size of the corpus that the other fixtures share."""
    return {"tokens_per_source": 50_000, "holdout_fraction": 0.05}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("chemicals", "fluids", "scipy", "pandas"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the toy corpus needs {package}: pip install 'octavo[toy]'")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(cache_dir: Path, small: dict[str, Any]) -> Corpus:
    return open_corpus(cache_dir, **small)


@pytest.fixture(scope="session")
def toy(cache_dir: Path, corpus: Corpus, small: dict[str, Any]) -> ToyData:
    return ToyData(cache_dir, {"pubchem": 2.0, "code": 1.0, "prose": 1.0}, seq_len=64, seed=7, **small)
