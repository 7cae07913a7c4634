from dataclasses import replace

import numpy as np
import torch

from parallel.context.share import Share
from trainer.data.batch import IGNORE, Media, make_batch
from trainer.data.windows import Windows
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images


def test_labels_positions_and_boundaries_of_a_hand_made_window() -> None:
    tokens = np.array([[11, 12, 0, 21, 22, 0, 31], [22, 0, 31, 32, 33, 34, 35]])
    starts = np.zeros((2, 7), bool)
    starts[0, [3, 6]] = True
    starts[1, 2] = True
    batch = make_batch(Windows(tokens, starts, np.zeros_like(starts), ("a fault",)), [4, 5])
    assert batch.inputs["ids"].tolist() == [[11, 12, 0, 21, 22, 0], [22, 0, 31, 32, 33, 34]]
    assert batch.labels.tolist() == [[12, 0, IGNORE, 22, 0, IGNORE], [0, IGNORE, 32, 33, 34, 35]]
    assert batch.inputs["positions"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]
    assert batch.cu_seqlens.tolist() == [0, 3, 6, 8, 12]
    assert batch.num_tokens == 9
    assert batch.samples == [4, 5]
    assert batch.faults == ("a fault",)
    types = [t.dtype for t in (*batch.inputs.values(), batch.labels, batch.cu_seqlens)]
    assert types == [torch.int64, torch.int64, torch.int64, torch.int32]


def test_tokens_that_are_not_trained_on_are_read_and_never_asked_for() -> None:
    tokens = np.array([[7, 8, 11, 0, 7, 8, 12]])
    starts = np.array([[True, False, False, False, True, False, False]])
    prefix = np.array([[True, True, False, False, True, True, False]])
    batch = make_batch(Windows(tokens, starts, prefix), [0])
    assert batch.inputs["ids"].tolist() == [[7, 8, 11, 0, 7, 8]]
    assert batch.labels.tolist() == [[IGNORE, 11, 0, IGNORE, IGNORE, 12]]
    assert batch.num_tokens == 3
    assert batch.cu_seqlens.tolist() == [0, 4, 6]


def test_moving_a_batch_leaves_its_boundaries_on_the_cpu() -> None:
    nowhere = np.zeros((1, 5), bool)
    batch = make_batch(Windows(np.ones((1, 5), np.int64), nowhere, nowhere), [0]).to("meta")
    assert {tensor.device.type for tensor in (*batch.inputs.values(), batch.labels)} == {"meta"}
    assert batch.cu_seqlens.tolist() == [0, 4]


def test_ranks_that_share_a_batch_have_its_tokens_and_all_boundaries() -> None:
    tokens = np.arange(2 * 7).reshape(2, 7)
    starts = np.zeros((2, 7), bool)
    starts[0, 4] = True
    batch = make_batch(Windows(tokens, starts, np.zeros_like(starts)), [4, 5])
    for kind in ("ulysses", "ring"):
        parts = [batch.part(Share(kind, 2, rank)) for rank in range(2)]
        assert [part.inputs["ids"].shape for part in parts] == [(1, 6)] * 2
        assert sum(part.num_tokens for part in parts) == batch.num_tokens == 11
        for part in parts:
            assert part.cu_seqlens.tolist() == [0, 4, 6, 12]
            at = {int(token): number for number, token in enumerate(part.inputs["ids"][0])}
            for row, token in np.ndindex(2, 6):
                if (number := at.get(tokens[row, token])) is not None:
                    assert part.inputs["positions"][0, number] == batch.inputs["positions"][row, token]
                    assert part.labels[0, number] == batch.labels[row, token]
        assert sorted(token for part in parts for token in part.inputs["ids"][0].tolist()) == [*range(6), *range(7, 13)]
    assert parts[0].inputs["ids"].tolist() == [[0, 1, 2, 10, 11, 12]]  # a ring's early and late pieces
    assert batch.part(Share()) is batch


def test_media_travel_with_their_batch() -> None:
    nowhere = np.zeros((1, 5), bool)
    batch = make_batch(Windows(np.ones((1, 5), np.int64), nowhere, nowhere), [0])
    assert batch.model_inputs().keys() == {"ids", "positions", "cu_seqlens"}
    images, signal = Images(torch.ones(4, 12), [(2, 2)]), Signal(torch.ones(3, 1), 2.0)
    moved = replace(batch, media=Media(images, (signal,))).to("meta")
    given = moved.model_inputs()
    assert given["images"].pixels.device.type == "meta"
    assert given["images"].grids == [(2, 2)]
    assert [(signal.values.device.type, signal.rate) for signal in given["signals"]] == [("meta", 2.0)]
    assert replace(batch, media=Media(torch.ones(1, 3, 4, 4))).to("meta").media.images.is_meta
