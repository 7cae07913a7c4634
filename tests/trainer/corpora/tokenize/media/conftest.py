"""Shards of documents with media without Megatron's builder, which takes seconds to import."""

from __future__ import annotations

import pytest

from trainer.corpora.tokenize import write


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "HAS_WHEEL", False)
