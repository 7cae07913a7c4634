"""One cache for the corpora of all data tests."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("chemicals", "fluids", "scipy", "pandas"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the toy corpus needs {package}: pip install -e '.[toy]'")
    return tmp_path_factory.mktemp("cache")
