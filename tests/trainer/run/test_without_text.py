"""A run on data that are not text: they implement the stream and the held-out samples, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.trainer.tiny_run import events, steps, tiny_config
from trainer.data.batch import Batch
from trainer.data.protocols import Data
from trainer.run.process import train

LENGTH = 12  # of every signal, in patches; the tiny model embeds 64 kinds of them


def signals(first: int, count: int, labels: bool) -> Batch:
    rows = torch.arange(first, first + count)
    ids = (rows[:, None] * 7 + torch.arange(LENGTH) * (1 + rows[:, None] % 3)) % 64
    return Batch(
        inputs={"ids": ids, "positions": torch.arange(LENGTH).expand(count, -1)},
        labels=ids.roll(-1, dims=1) if labels else None,
        cu_seqlens=torch.arange(0, (count + 1) * LENGTH, LENGTH, dtype=torch.int32),
        num_tokens=ids.numel(),
        samples=rows.tolist(),
    )


class Signals:
    """Both a `Stream` and a `HeldOut`."""

    shares = {"left": 3.0, "right": 1.0}  # noqa: RUF012
    sources = ("left", "right")

    def __init__(self, labels: bool) -> None:
        self.labels = labels

    def batch(self, first: int, count: int) -> Batch:
        return signals(first, count, self.labels)

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[Batch]:
        for number in range(count):
            yield signals(10_000 * (1 + self.sources.index(source)) + number * micro_batch, micro_batch, self.labels)


@pytest.mark.parametrize("objective", ["contrastive", "next_token"])
def test_a_run_trains_and_evaluates_without_text(tmp_path, monkeypatch, objective):
    source = Signals(labels=objective == "next_token")
    data = Data(stream=source, heldout=source, fingerprint="0123456789abcdef")
    monkeypatch.setattr("trainer.run.build.build_data", lambda *_, **__: data)
    assert train(tiny_config(tmp_path, objective=objective, eval_every=4, sample_tokens=3)) == 0
    assert [record["step"] for record in steps(tmp_path)] == list(range(1, 9))
    (described,) = events(tmp_path, "data")
    assert described["message"] == "left 75.0%, right 25.0%; fingerprint 0123456789ab"
    evaluations = events(tmp_path, "evaluation")
    assert len(evaluations) == 2
    for record in evaluations:
        assert set(record["heldout"]) == {"left", "right"}
        assert all(value > 0 for value in record["heldout"].values())
        assert not {"unigram", "uniform"} & set(record)
    assert not events(tmp_path, "sample")
