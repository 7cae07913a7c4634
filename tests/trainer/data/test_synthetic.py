import math
from dataclasses import replace

import pytest
import torch

from trainer.config.keys import DataConfig
from trainer.data import build_data
from trainer.data.batch import IGNORE
from trainer.data.errors import DataError
from trainer.data.synthetic import SyntheticData


def data(vocab_size: int = 100, seq_len: int = 128, seed: int = 5) -> SyntheticData:
    return SyntheticData(vocab_size=vocab_size, seq_len=seq_len, seed=seed)


def test_the_tokens_are_these_for_ever() -> None:
    batch = data(seq_len=12).train_batch(3, 2)
    assert batch.input_ids.tolist() == [
        [23, 28, 33, 38, 43, 48, 53, 4, 18, 68, 73, 78],
        [49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60],
    ]
    assert batch.labels.tolist() == [
        [28, 33, 38, 43, 48, 53, 4, 18, 68, 73, 78, 83],
        [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61],
    ]


def test_a_sample_does_not_depend_on_what_was_asked_with_it() -> None:
    whole = data().train_batch(10**12, 12)
    parts = [data().train_batch(10**12 + n, 3) for n in range(0, 12, 3)]
    assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert not torch.equal(data(seed=6).train_batch(10**12, 12).input_ids, whole.input_ids)


@pytest.mark.parametrize("vocab_size", [2, 7, 4096, 151_936])
def test_tokens_use_the_vocabulary_and_documents_end(vocab_size: int) -> None:
    batch = data(vocab_size=vocab_size, seq_len=512).train_batch(0, 64)
    assert int(batch.input_ids.min()) >= 0
    assert vocab_size * 3 // 4 < int(batch.input_ids.max()) + 1 <= vocab_size
    boundaries = batch.cu_seqlens[1:-1].long()
    inside = boundaries[boundaries % 512 != 0]
    assert len(inside) > 64 * 4
    ends = batch.input_ids.flatten()[inside - 1]
    assert torch.all(ends == 0)
    assert torch.all(batch.labels.flatten()[inside - 1] == IGNORE)


def test_most_tokens_follow_the_rule_of_their_document() -> None:
    batch = data(vocab_size=50).train_batch(0, 64)
    steps = (batch.labels - batch.input_ids) % 49
    supervised = (batch.labels != IGNORE) & (batch.labels != 0) & (batch.input_ids != 0)
    ruled = sum(int((steps[supervised] == stride).sum()) for stride in (1, 2, 3, 5))
    assert 0.7 < ruled / int(supervised.sum()) < 0.95


def test_held_out_windows_are_others_and_the_unigram_knows_something() -> None:
    source = data(vocab_size=1000)
    (batch,) = source.eval_batches("synthetic", 1, 8)
    assert not torch.equal(batch.input_ids, source.train_batch(0, 8).input_ids)
    assert math.log(1000) - 2 < source.unigram_nats() < math.log(1000) - 0.01


def test_it_is_built_by_name_and_stands_in_for_text() -> None:
    cfg = DataConfig(name="synthetic", seq_len=16)
    built = build_data(cfg, seed=5, vocab_size=30)
    assert built.vocab_size == 30
    assert torch.equal(built.train_batch(0, 2).input_ids, data(30, 16).train_batch(0, 2).input_ids)
    assert built.fingerprint != data(31, 16).fingerprint
    for source, prompt in built.prompts().items():
        assert source in built.sources
        assert all(0 <= token < 30 for token in built.tokenizer.encode(prompt))
    assert built.tokenizer.decode([1, 29]) == "1 29"
    with pytest.raises(DataError, match=r"data\.name=toys: use mixture or synthetic"):
        build_data(replace(cfg, name="toys"), seed=5, vocab_size=30)
    with pytest.raises(DataError, match=r"model\.vocab_size=1"):
        build_data(cfg, seed=5, vocab_size=1)
