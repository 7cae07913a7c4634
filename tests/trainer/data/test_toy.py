import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config import DataConfig
from trainer.data import build_data
from trainer.data.batch import IGNORE
from trainer.data.corpus import HELDOUT, TRAIN, Corpus
from trainer.data.errors import DataError
from trainer.data.store import MappedTokens
from trainer.data.toy import ToyData

S = 64  # the fixture's seq_len


def settings(cache_dir: Path, small: dict[str, Any], **changes: object) -> DataConfig:
    weights = {"pubchem": 2.0, "code": 1.0, "prose": 1.0}
    return DataConfig(
        **{"name": "toy", "seq_len": S, "cache_dir": str(cache_dir), "weights": weights} | small | changes
    )


def test_every_token_of_a_document_is_labelled_once_per_epoch_as_in_the_stream(toy: ToyData, corpus: Corpus) -> None:
    """Windows of all samples together give each (token, next token) of a source once: nothing lost, nothing crossed."""
    streams = {source: MappedTokens(corpus.stem(source, TRAIN)) for source in toy.sources}
    windows: dict[str, dict[int, list[list[int]]]] = {source: {} for source in toy.sources}
    lookup = toy._sampler.lookup(np.arange(4000))
    for sample, (source, window) in enumerate(zip(*(x.tolist() for x in lookup), strict=True)):
        name = toy.sources[source]
        if window not in windows[name]:
            batch = toy.train_batch(sample, 1)
            windows[name][window] = [batch.input_ids[0].tolist(), batch.labels[0].tolist()]
    for name, stream in streams.items():
        count = (stream.num_tokens - 1) // S
        assert sorted(windows[name]) == list(range(count))
        inputs = [token for w in range(count) for token in windows[name][w][0]]
        labels = [token for w in range(count) for token in windows[name][w][1]]
        expected_inputs, expected_labels = [], []
        for index in range(stream.num_documents):
            document = stream.document(index).tolist()
            expected_inputs += document
            expected_labels += [*document[1:], IGNORE]
        assert inputs == expected_inputs[: count * S]
        assert labels == expected_labels[: count * S]


def test_positions_and_boundaries_restart_with_every_document(toy: ToyData) -> None:
    eos_id = toy.tokenizer.eos_id
    batch = toy.train_batch(100, 32)
    flat, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    begins = [i for i in range(32 * S) if i % S == 0 or flat[i - 1] == eos_id]
    assert batch.cu_seqlens.tolist() == [*begins, 32 * S]
    for begin, end in zip(begins, [*begins[1:], 32 * S], strict=True):
        assert positions[begin:end].tolist() == list(range(end - begin))
    assert batch.num_tokens == int((batch.labels != IGNORE).sum())
    assert len(begins) > 32  # the batch does hold documents that begin inside a window
    assert torch.all(batch.labels[batch.input_ids == eos_id] == IGNORE)


def test_samples_are_the_same_in_any_slicing_and_in_a_new_object(
    toy: ToyData, cache_dir: Path, small: dict[str, Any]
) -> None:
    whole = toy.train_batch(1000, 24)
    other = build_data(settings(cache_dir, small), seed=7, vocab_size=4096)
    for micro_batch in (1, 2, 3, 8):
        parts = [other.train_batch(n, micro_batch) for n in range(1000, 1024, micro_batch)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert [sample for part in parts for sample in part.samples] == whole.samples == list(range(1000, 1024))
        assert sum(part.num_tokens for part in parts) == whole.num_tokens
    reseeded = build_data(settings(cache_dir, small), seed=8, vocab_size=4096)
    assert not torch.equal(reseeded.train_batch(1000, 24).input_ids, whole.input_ids)
    assert reseeded.fingerprint == toy.fingerprint


def test_evaluation_reads_fixed_windows_of_the_held_out_split(toy: ToyData, corpus: Corpus) -> None:
    for source in toy.sources:
        heldout = MappedTokens(corpus.stem(source, HELDOUT))
        available = (heldout.num_tokens - 1) // S
        batches = list(toy.eval_batches(source, 3, 4))
        assert [tuple(batch.input_ids.shape) for batch in batches] == [(4, S)] * 3
        for batch in batches:
            for row, window in enumerate(batch.samples):
                assert batch.input_ids[row].tolist() == heldout.window(window * S, S)[0].tolist()
        again = list(toy.eval_batches(source, 3, 4))
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(batches, again, strict=True))
        everything = [window for batch in toy.eval_batches(source, 10**6, 5) for window in batch.samples]
        assert everything == list(range(available))


def test_unigram_is_a_cross_entropy_below_uniform(toy: ToyData, corpus: Corpus) -> None:
    total = {"pubchem": 0.5, "code": 0.25, "prose": 0.25}
    mixture = np.zeros(4096)
    for source, share in total.items():
        stream = MappedTokens(corpus.stem(source, TRAIN))
        tokens, _ = stream.window(0, stream.num_tokens)
        mixture += share * (np.bincount(tokens, minlength=4096) + 1) / (len(tokens) + 4096)
    assert mixture.sum() == pytest.approx(1)
    for source in toy.sources:
        heldout = MappedTokens(corpus.stem(source, HELDOUT))
        labels = np.concatenate([heldout.document(i)[1:] for i in range(heldout.num_documents)])
        assert toy.unigram_nats(source) == pytest.approx(-np.log(mixture[labels]).mean(), rel=1e-12)
        assert 3 < toy.unigram_nats(source) < math.log(4096)
    over_all = sum(share * toy.unigram_nats(source) for source, share in total.items())
    assert toy.unigram_nats() == pytest.approx(over_all, rel=1e-12)


def test_prompts_are_text_of_their_source(toy: ToyData) -> None:
    prompts = toy.prompts()
    assert list(prompts) == toy.sources == ["pubchem", "code", "prose"]
    for prompt in prompts.values():
        assert toy.tokenizer.decode(toy.tokenizer.encode(prompt)) == prompt
        assert not prompt.endswith(" ")  # a word's token begins with its space


def test_a_source_of_weight_0_is_left_out(cache_dir: Path, corpus: Corpus, small: dict[str, Any]) -> None:
    weights = {"pubchem": 0.0, "code": 1.0}
    data = build_data(settings(cache_dir, small, weights=weights), seed=7, vocab_size=4096)
    assert data.sources == ["code"]
    assert list(data.prompts()) == ["code"]
    assert data.unigram_nats() == data.unigram_nats("code")
    assert data.train_batch(0, 4).input_ids.shape == (4, S)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"pubmed": 1.0}}, r"data\.weights=.*give pubchem, code, prose a weight"),
        ({"weights": {"code": 0.0}}, r"data\.weights="),
        ({"weights": {}}, r"data\.weights="),
        ({"weights": {"code": 1.0, "prose": -1.0}}, r"data\.weights="),
        ({"seq_len": 10**6}, r"data\.seq_len=1000000 is longer than the train split of source 'pubchem'"),
        ({"seq_len": 40_000}, r"data\.seq_len=40000 is longer than the heldout split"),
        ({"name": "toys"}, r"data\.name=toys: use mixture, toy or synthetic"),
    ],
)
def test_settings_that_cannot_work_are_named(
    cache_dir: Path, corpus: Corpus, small: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_data(settings(cache_dir, small, **changes), seed=7, vocab_size=4096)


def test_a_model_with_too_few_tokens_is_refused(cache_dir: Path, corpus: Corpus, small: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"model\.vocab_size=4000 is smaller than the corpus' 4096"):
        build_data(settings(cache_dir, small), seed=7, vocab_size=4000)


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, 0)])
def test_sample_numbers_start_at_0(toy: ToyData, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="numbers start at 0"):
        toy.train_batch(first, count)
