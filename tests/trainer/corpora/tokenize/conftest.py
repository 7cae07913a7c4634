"""Small units of work, and shards without Megatron's builder."""

import pytest

from trainer.corpora.tokenize import inputs, spool, write


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's builder takes seconds to import; both write the same, as test_tokenize.py checks."""
    monkeypatch.setattr(write, "HAS_WHEEL", False)


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "UNIT", 800)
    monkeypatch.setattr(spool, "PART_TOKENS", 300)
