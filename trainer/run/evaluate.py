"""Held-out loss per source. Draws no random numbers and moves no state of the training run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from parallel.world import World
from trainer.data import Data
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder


@torch.no_grad()
def held_out_nats(
    model: Decoder, data: Data, world: World, *, batches: int, micro_batch: int, chunk: int
) -> dict[str, float]:
    """Cross-entropy in nats per token on fixed windows of each source's held-out split; alike on all ranks.

    batches: micro-batches of `micro_batch` windows for each rank. chunk: tokens whose logits exist at one time.
    """
    sums = torch.zeros(len(data.sources), 2, dtype=torch.float64, device=world.device)
    for number, source in enumerate(data.sources):
        for batch, counts in _turns(list(data.eval_batches(source, batches * world.size, micro_batch)), world):
            world.watch.tick()
            batch = batch.to(world.device)
            nats, _ = model(
                batch.input_ids, batch.position_ids, batch.cu_seqlens, labels=batch.labels, loss_chunk=chunk
            )
            if counts:
                sums[number, 0] += nats
                sums[number, 1] += batch.num_tokens
    world.sum_tensor(sums)
    return {source: nats / max(tokens, 1.0) for source, (nats, tokens) in zip(data.sources, sums.tolist(), strict=True)}


def _turns(batches: list[Batch], world: World) -> Iterator[tuple[Batch, bool]]:
    """This rank's forward passes, and whether it counts each. At every turn all ranks have batches of one shape, or the
    same batch, as spread weights need all of them: what does not fill a turn is run by all and counted by rank 0."""
    alike = [batch for batch in batches if batch.input_ids.shape == batches[0].input_ids.shape]
    filled = len(alike) // world.size * world.size
    for batch in alike[world.rank : filled : world.size]:
        yield batch, True
    for batch in alike[filled:] + batches[len(alike) :]:
        yield batch, world.rank == 0
