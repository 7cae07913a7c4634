import math
from dataclasses import replace

import pytest
import torch

from trainer.config.keys import DataConfig
from trainer.data.batch import IGNORE
from trainer.data.build import build_data
from trainer.data.errors import DataError
from trainer.data.protocols import Data
from trainer.data.synthetic import open_synthetic
from trainer.data.text import prompts, unigram_nats


def data(vocab_size: int = 100, seq_len: int = 128, seed: int = 5) -> Data:
    return open_synthetic(vocab_size=vocab_size, seq_len=seq_len, seed=seed)


def test_the_tokens_never_change() -> None:
    batch = data(seq_len=12).stream.batch(3, 2)
    assert batch.inputs["ids"].tolist() == [
        [23, 28, 33, 38, 43, 48, 53, 4, 18, 68, 73, 78],
        [49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60],
    ]
    assert batch.labels.tolist() == [
        [28, 33, 38, 43, 48, 53, 4, 18, 68, 73, 78, 83],
        [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61],
    ]


def test_a_sample_does_not_depend_on_what_was_asked_with_it() -> None:
    whole = data().stream.batch(10**12, 12)
    parts = [data().stream.batch(10**12 + n, 3) for n in range(0, 12, 3)]
    assert torch.equal(torch.cat([part.inputs["ids"] for part in parts]), whole.inputs["ids"])
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert not torch.equal(data(seed=6).stream.batch(10**12, 12).inputs["ids"], whole.inputs["ids"])


@pytest.mark.parametrize("vocab_size", [2, 7, 4096, 151_936])
def test_tokens_use_the_vocabulary_and_documents_end(vocab_size: int) -> None:
    batch = data(vocab_size=vocab_size, seq_len=512).stream.batch(0, 64)
    assert int(batch.inputs["ids"].min()) >= 0
    assert vocab_size * 3 // 4 < int(batch.inputs["ids"].max()) + 1 <= vocab_size
    boundaries = batch.cu_seqlens[1:-1].long()
    inside = boundaries[boundaries % 512 != 0]
    assert len(inside) > 64 * 4
    ends = batch.inputs["ids"].flatten()[inside - 1]
    assert torch.all(ends == 0)
    assert torch.all(batch.labels.flatten()[inside - 1] == IGNORE)


def test_most_tokens_follow_the_rule_of_their_document() -> None:
    batch = data(vocab_size=50).stream.batch(0, 64)
    steps = (batch.labels - batch.inputs["ids"]) % 49
    supervised = (batch.labels != IGNORE) & (batch.labels != 0) & (batch.inputs["ids"] != 0)
    ruled = sum(int((steps[supervised] == stride).sum()) for stride in (1, 2, 3, 5))
    assert 0.7 < ruled / int(supervised.sum()) < 0.95


def test_held_out_windows_are_others_and_the_unigram_knows_something() -> None:
    source = data(vocab_size=1000)
    (batch,) = (late.read() for late in source.heldout.batches("synthetic", 1, 8))
    assert not torch.equal(batch.inputs["ids"], source.stream.batch(0, 8).inputs["ids"])
    assert math.log(1000) - 2 < unigram_nats(source.text)["synthetic"] < math.log(1000) - 0.01


def test_it_is_built_by_name_and_replaces_text() -> None:
    cfg = DataConfig(name="synthetic", seq_len=16)
    built = build_data(cfg, seed=5, vocab_size=30)
    assert built.text is not None
    assert built.text.vocab_size == 30
    assert torch.equal(built.stream.batch(0, 2).inputs["ids"], data(30, 16).stream.batch(0, 2).inputs["ids"])
    assert built.fingerprint != data(31, 16).fingerprint
    for source, prompt in prompts(built.text).items():
        assert source in built.heldout.sources
        assert all(0 <= token < 30 for token in built.text.tokenizer.encode(prompt))
    assert built.text.tokenizer.decode([1, 29]) == "1 29"
    with pytest.raises(DataError) as error:
        build_data(replace(cfg, name="toys"), seed=5, vocab_size=30)
    assert (error.value.where, error.value.value) == ("data.name", "toys")
    assert error.value.allowed == ("mixture", "synthetic", "pairs", "chat", "questions")
    with pytest.raises(DataError) as error:
        build_data(cfg, seed=5, vocab_size=1)
    assert (error.value.where, error.value.value) == ("model.vocab_size", 1)
