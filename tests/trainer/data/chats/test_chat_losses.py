"""Losses of chats: packed and not, and each reduction against its formula over single examples in fp64."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.pool import on_ranks
from tests.trainer.data.chats.chat_corpus import VOCAB_SIZE, chat_config, write_corpus
from tests.trainer.tiny_run import MODEL, events, steps
from trainer.config.keys import Config
from trainer.config.model import ModelConfig
from trainer.data.chats.prepare import prepare
from trainer.data.chats.reader import ChatReader
from trainer.data.chats.tokens import open_tokenizer
from trainer.data.text import TextStream
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch
from trainer.run.process import train
from trainer.storage.progress import ignore

Reduction = Literal["token", "sample", "square"]
REDUCTIONS: tuple[Reduction, ...] = ("token", "sample", "square")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(ModelConfig(**{**MODEL, "vocab_size": VOCAB_SIZE}), torch.float64)
    decoder.init_weights(7)
    return decoder.double()


def opened(corpus: Path, reduction: Reduction, packing: str) -> tuple[TextStream, int]:
    """The stream, and the windows of an epoch."""
    data = chat_config(corpus / "run", corpus, data={"pack_chats": packing}).data
    reader = ChatReader(data, prepare(data, open_tokenizer(data), ignore), seed=3, padding=2)
    return TextStream(reader.read, reader.shares, reduction), reader.train.count


def epoch_loss(model: Decoder, stream: TextStream, windows: int, micro_batch: int) -> float:
    """The loss of one step that reads every window of an epoch once."""
    objective = NextToken(chunk=64)
    batches = [stream.batch(first, min(micro_batch, windows - first)) for first in range(0, windows, micro_batch)]
    whole = GlobalBatch(sum(objective.count(batch) for batch in batches), len(batches))
    return sum(
        float(objective.loss(model, model(**batch.model_inputs()).hidden, batch, whole).total) for batch in batches
    )


def single_losses(model: Decoder, corpus: Path) -> list[Tensor]:
    """Nats of the labels of each training example, run alone and by torch's own cross-entropy."""
    data = chat_config(corpus / "run", corpus).data
    prepared = prepare(data, open_tokenizer(data), ignore)
    found = []
    for first, length, record, _ in prepared.examples.tolist():
        if prepared.records[record, 1]:
            continue  # held out
        ids = torch.tensor(prepared.tokens[first : first + length].astype("int64"))[None]
        trained = torch.tensor(prepared.trained[first + 1 : first + length] == 1)
        bounds = torch.tensor([0, length], dtype=torch.int32)
        hidden = model(ids=ids, positions=torch.arange(length)[None], cu_seqlens=bounds).hidden[0]
        nats = F.cross_entropy(hidden[:-1] @ model.lm_head.T, ids[0, 1:], reduction="none")
        found.append(nats[trained])
    return found


@torch.no_grad()
def test_packed_is_unpacked_and_every_reduction_is_its_formula(corpus, model):
    nats = single_losses(model, corpus)
    assert len(nats) > 40  # the template gives several examples of some chats
    assert len({len(one) for one in nats}) > 5
    powers = {"token": 0.0, "sample": 1.0, "square": 0.5}
    losses = {}
    for reduction in REDUCTIONS:
        weights = [len(one) ** -powers[reduction] for one in nats]
        total = sum(float(one.sum()) * weight for one, weight in zip(nats, weights, strict=True))
        expected = total / sum(len(one) * weight for one, weight in zip(nats, weights, strict=True))
        packed, few = opened(corpus, reduction, "best_fit")
        alone, many = opened(corpus, reduction, "none")
        assert few < many == len(nats)
        for stream, windows, micro_batch in ((packed, few, 4), (packed, few, 3), (alone, many, 16)):
            assert epoch_loss(model, stream, windows, micro_batch) == pytest.approx(expected, rel=1e-9), reduction
        losses[reduction] = expected
    assert len({round(loss, 6) for loss in losses.values()}) == 3


def test_gradients_of_weighted_labels_are_autograds(model):
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(9, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, -100, 0, 10, 4, -100, 7, 7, 1])
    weights = torch.rand(9, generator=draw, dtype=torch.float64) * (labels >= 0)
    from trainer.objectives.next_token import chunked_cross_entropy

    ours = chunked_cross_entropy(hidden, head, labels, 4, weights)
    theirs = (F.cross_entropy(hidden @ head.T, labels, reduction="none") * weights).sum()
    for mine, other in zip(
        torch.autograd.grad(ours, (hidden, head)), torch.autograd.grad(theirs, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)


def rank_trains(cfg: Config) -> int:
    return train(cfg)


def logged(directory: Path) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in steps(directory)]


def run(corpus: Path, directory: Path, ranks: int, micro_batch: int, **parallel: int) -> list[tuple[float, float]]:
    cfg = chat_config(
        directory, corpus, loss_reduction="square", global_batch=8, micro_batch=micro_batch, data={"seq_len": 400}
    )
    for key, value in parallel.items():
        setattr(cfg.parallel, key, value)
    codes = [train(cfg)] if ranks == 1 else on_ranks(ranks, rank_trains, cfg, timeout_s=120.0)
    assert codes == [0] * ranks
    assert events(directory, "evaluation")
    return logged(directory)


LAYOUTS = [
    (1, 2, {}),
    pytest.param(2, 2, {"dp_shard": 2}),
    pytest.param(2, 4, {"cp": 2, "dp_shard": 1}, marks=pytest.mark.slow),
    pytest.param(2, 2, {"pp": 2}, marks=pytest.mark.slow),
    pytest.param(4, 2, {"pp": 2, "cp": 2, "dp_shard": 1}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("ranks", "micro_batch", "parallel"), LAYOUTS)
def test_layouts_and_micro_batches_do_not_change_the_mean(corpus, tmp_path, ranks, micro_batch, parallel):
    one = run(corpus, tmp_path / "one", 1, 8)
    other = run(corpus, tmp_path / "other", ranks, micro_batch, **parallel)
    for mine, theirs in zip(one, other, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3)
    assert other[0][0] == pytest.approx(one[0][0], rel=1e-6)
