"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

The update rule is torch.optim.Muon's with Nesterov momentum. That optimizer takes two-dimensional parameters only and
gathers a sharded one on every rank; here each matrix of any weight is orthogonalised once, on one of the ranks that
hold a part of it (`parallel/sharding/owners.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.sharding.owners import Bucket, Job, Stack, plan
from trainer.config.keys import OptimConfig
from trainer.config.model import newton_schulz_flops
from trainer.optim.newton_schulz import orthogonalise

# Elements of a rank that are worked on at one time: a few matrices that stay in the cache of a CPU; on other devices,
# and where they are exchanged, 0.25 GB in fp32, and about six times that in temporaries.
IN_CACHE, IN_FLIGHT = 1 << 18, 64 << 20


class Muon(torch.optim.Optimizer):
    """Muon over this rank's shards.

    weights: parameters by name. leaves: the local tensors to update, whose `grad` is read. rows: as `hidden_matrices`
    returns them, for each weight. group: the ranks that hold parts or replicas of the weights, None if there is only
    this one. moments: dtype of the momentum, None for that of the weights. The rate, the state and what makes it skip a
    step are those of torch's fused optimizers: `param_groups`, `state`, and `found_inf` and `grad_scale`.
    """

    found_inf: Tensor
    grad_scale: Tensor | None = None

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        leaves: Mapping[str, Tensor],
        rows: Mapping[str, tuple[int, ...]],
        cfg: OptimConfig,
        group: dist.ProcessGroup | None,
        moments: torch.dtype | None,
    ) -> None:
        text = cfg.parts.text
        decay = cfg.weight_decay if text.weight_decay is None else text.weight_decay
        ratio = 1.0 if text.lr is None else text.lr / cfg.lr
        super().__init__(list(leaves.values()), {"lr": cfg.lr, "weight_decay": decay, "lr_ratio": ratio})
        self.cfg, self.group = cfg, group
        self.weights, self.leaves, self.rows = dict(weights), dict(leaves), dict(rows)
        for leaf in leaves.values():
            self.state[leaf] = {"momentum_buffer": torch.zeros_like(leaf, dtype=moments)}
        self._plans: dict[tuple[str, ...], tuple[list[tuple[str, Stack]], list[Bucket]]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        stacks, buckets = self._plan(tuple(name for name, leaf in self.leaves.items() if leaf.grad is not None))
        group = self.param_groups[0]
        skip = self.found_inf.bool()
        # 1 where the step is skipped: multiplying by 1 leaves every bit.
        decay = 1.0 - group["lr"] * group["weight_decay"] * (1.0 - self.found_inf.double())
        like = next(iter(self.leaves.values()))
        dtype = torch.bfloat16 if self.cfg.ns_dtype == "bf16" else like.dtype
        like = like.new_empty(0, dtype=dtype)
        for bucket in buckets:
            leaves = [self.leaves[stacks[job.stack][0]] for job in bucket.jobs]
            directions = [
                self._direction(leaf, job, skip).to(dtype) for leaf, job in zip(leaves, bucket.jobs, strict=True)
            ]
            wholes = [orthogonalise(whole, self.cfg.ns_steps) for whole in bucket.whole(directions, like)]
            for leaf, job, update in zip(leaves, bucket.jobs, bucket.parts(wholes, like), strict=True):
                scaled = update.to(leaf.dtype) * (-group["lr"] * self._scale(*job.matrix))
                # Adding -0.0 leaves every bit, the sign of a zero included.
                job.view(leaf).mul_(decay).add_(torch.where(skip, -0.0, scaled))

    def _plan(self, names: tuple[str, ...]) -> tuple[list[tuple[str, Stack]], list[Bucket]]:
        """The matrices of the weights called `names`, and the buckets in which they are updated."""
        if names not in self._plans:
            stacks = []
            for name in names:
                first = 0
                for height in self.rows[name]:
                    stacks.append((name, Stack(self.weights[name], slice(first, first + height))))
                    first += height
            on_cpu = all(leaf.device.type == "cpu" for leaf in self.leaves.values())
            buckets = plan(
                [stack for _, stack in stacks],
                lambda rows, columns: newton_schulz_flops(rows, columns, self.cfg.ns_steps),
                self.group,
                elements=IN_FLIGHT,
                elements_alone=IN_CACHE if on_cpu else IN_FLIGHT,
            )
            self._plans[names] = stacks, buckets
        return self._plans[names]

    def _direction(self, leaf: Tensor, job: Job, skip: Tensor) -> Tensor:
        """Advance the momentum and return it as Nesterov reads it, one step ahead."""
        assert leaf.grad is not None
        grad, buffer = job.view(leaf.grad.contiguous()), job.view(self.state[leaf]["momentum_buffer"])
        if self.grad_scale is not None:
            grad = grad / self.grad_scale
        held = buffer.to(grad.dtype)
        mean = held.lerp(grad, 1.0 - self.cfg.momentum)
        buffer.copy_(torch.where(skip, held, mean))
        return grad.lerp(mean, self.cfg.momentum)

    def _scale(self, rows: int, columns: int) -> float:
        """Factor of the learning rate. An orthogonal matrix has a root mean square of 1 / sqrt(longer side)."""
        if self.cfg.adjust_lr == "original":
            return max(1.0, rows / columns) ** 0.5
        return 0.2 * max(rows, columns) ** 0.5
