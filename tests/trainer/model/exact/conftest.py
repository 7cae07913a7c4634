import pytest

from trainer.model.exact.library import library


@pytest.fixture(scope="session")
def compiled():
    """The compiled functions. Made when a test first needs them, not as tests are collected."""
    if library() is None:
        pytest.skip("there is no C compiler")
