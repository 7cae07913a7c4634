"""Read back a corpus of text, and skip where Megatron is missing, for tests."""

import importlib.util
import json
from pathlib import Path

import pytest

from trainer.data.shards.megatron_index import IndexedTokens

needs_megatron = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this Python or platform"
)


def written(directory: Path, split: str) -> list[list[int]]:
    """All documents of a split in order."""
    manifest = json.loads((directory / "manifest.json").read_text())
    found = []
    for shard in manifest["shards" if split == "train" else split]:
        store = IndexedTokens(directory / shard["stem"])
        assert (store.num_documents, store.num_tokens) == (shard["documents"], shard["tokens"])
        found += [store.document(number).tolist() for number in range(store.num_documents)]
    return found
