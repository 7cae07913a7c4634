"""A run on six trillion tokens starts at once and finds any sample at once."""

from tests.bench.data_index import DOCUMENTS, SEQ_LEN, TOKENS, measure


def test_a_run_on_six_trillion_tokens_starts_and_seeks_at_once():
    """CPU time in a process of its own, with manifests of 6,000 shards. A quiet machine takes 0.35 ms for a seek and 1
    ms for the passes, a busy one more for both."""
    start = measure("octavo", 1)
    assert start["samples"] == TOKENS // SEQ_LEN
    assert start["documents"] == DOCUMENTS
    assert start["seconds"] < 2
    assert start["mb"] < 200
    assert start["seek_ms"] < start["passes_ms"]
