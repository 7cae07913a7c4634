"""The optimizer behind a seam of four calls, and the engine that is torch's own.

The native engine never waits for the device and never shows the optimizer a DTensor: a parameter that is one is
optimised through the shard that this rank holds, whatever mesh it lies on, so that weights on different meshes share
one fused call. torch's fused AdamW and SGD divide every gradient by `optimizer.grad_scale` as they read it and do
nothing at all where `optimizer.found_inf` is 1. Both are tensors, so clipping costs no pass over the gradients of its
own (measured on 9.2 M parameters, one CPU thread: 0.7-1.7 ms a step against 2.8 for a multiply before it) and a step
whose gradient is not finite leaves parameters, moments and step counts bitwise as they were, decided on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from parallel.offload import ZeroEngine
from parallel.torch_private import foreach_copy
from parallel.world import World
from trainer.config.keys import OptimConfig
from trainer.precision import wide


class Engine(Protocol):
    """What the training loop knows of an optimizer. Gradients are sums over all ranks, never averages: the loss that
    comes to `backward` is already divided by the global token count."""

    def prepare(self) -> None:
        """Take the parameters over and allocate all state; once they have values and before a checkpoint is loaded."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's `loss` (0-dim) to those of the step."""

    def step(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """Apply the gradients of all ranks as optimizer step `step` of `steps` and drop them.

        Returns on the device the global gradient norm before clipping (0-dim) and the steps skipped for a gradient that
        was not finite: in a row up to this one, and since the run began ([2]).
        """

    def state(self) -> dict[str, Tensor]:
        """The live state, by "<parameter>.<moment>" and "skipped": copied by a save, filled in place by a load."""


def lr_at(step: int, cfg: OptimConfig, steps: int) -> float:
    """Learning rate of optimizer step `step` (1 to `steps`) of a run of `steps` steps.

    Linear warmup over `warmup_steps`; then
      wsd       constant, and over the last `decay_fraction` of the steps linear to `lr * min_lr_ratio`;
      cosine    half a cosine from `lr` to `lr * min_lr_ratio` at the last step;
      constant  `lr`.
    A pure function, so a resumed run needs no schedule state; a longer run (`train.steps`) moves the decay with it.
    """
    if step <= cfg.warmup_steps:
        return cfg.lr * step / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    start = cfg.warmup_steps
    if cfg.schedule == "wsd":
        start = max(start, steps - cfg.decay_steps(steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    fall = progress if cfg.schedule == "wsd" else (1.0 - math.cos(math.pi * progress)) / 2.0
    return cfg.lr * (1.0 - (1.0 - cfg.min_lr_ratio) * fall)


class NativeEngine:
    """torch's fused AdamW or SGD over this rank's shards.

    `shard_group`: the ranks that together hold every sharded parameter once (None: no parameter is sharded, or there is
    one rank). Plain parameters are replicas: their gradients are summed over `world` here. Gradients of sharded ones
    come summed, from whoever sharded them. `moments`: the dtype that AdamW's two are stored in; None:
    that of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: OptimConfig,
        world: World,
        shard_group: dist.ProcessGroup | None = None,
        moments: torch.dtype | None = None,
    ) -> None:
        self.model, self.cfg, self.world, self.shard_group, self.moments = model, cfg, world, shard_group, moments

    def prepare(self) -> None:
        """Build the optimizer and its state.

        The state exists before the first step so that a checkpoint can be loaded into it, and because fused SGD would
        otherwise take an uninitialised momentum buffer into use when its very first step is skipped.
        """
        self.named = dict(self.model.named_parameters())
        self.plain = [p for p in self.named.values() if p.requires_grad and not isinstance(p, DTensor)]
        # What is optimised: the parameter itself, or this rank's shard of it, whose memory FSDP gathers from. (FSDP
        # moves a shard where values are put into a model on meta, so not after this.)
        self.leaves = {name: _shard(p) if isinstance(p, DTensor) else p for name, p in self.named.items()}
        groups = [
            {"params": [self.leaves[name] for name in names], "weight_decay": decay}
            for names, decay in weight_decay_groups(self.named, self.cfg)
        ]
        self.optimizer = _torch_optimizer(groups, self.cfg, self.moments)
        # steps skipped in a row up to now, and since the run began
        self.skipped = torch.zeros(2, device=next(iter(self.leaves.values())).device)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        self.world.sum_gradients(self.plain)
        self._take_gradients()
        norm = self._gradient_norm()
        found_inf = (~torch.isfinite(norm)).float()
        self.skipped.add_(found_inf)
        self.skipped[0].mul_(found_inf)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(step, self.cfg, steps)
        # The interface that torch.amp.GradScaler uses; the optimizers read the attributes with getattr.
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        if self.cfg.clip_norm > 0:
            self.optimizer.grad_scale = (norm / self.cfg.clip_norm).clamp(min=1.0).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        for tensor in (*self.named.values(), *self.leaves.values()):
            tensor.grad = None
        return norm, self.skipped.clone()

    def state(self) -> dict[str, Tensor]:
        tensors = {"skipped": self.skipped}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state[self.leaves[name]].items():
                # AdamW's step count is one number, alike on all ranks: an empty shard counts its steps too.
                tensors[f"{name}.{key}"] = _like(parameter, value) if value.ndim else value
        return tensors

    def _take_gradients(self) -> None:
        for name, parameter in self.named.items():
            if isinstance(parameter, DTensor):
                self.leaves[name].grad = None if parameter.grad is None else _shard(parameter.grad)

    def _gradient_norm(self) -> Tensor:
        """Over every element of every parameter once, in float32 or better."""
        if self.shard_group is None:
            return nn.utils.get_total_norm([leaf.grad for leaf in self.leaves.values() if leaf.grad is not None])
        held = [self.leaves[name].grad for name, p in self.named.items() if isinstance(p, DTensor)]
        squares = nn.utils.get_total_norm([grad for grad in held if grad is not None]).double().square()
        dist.all_reduce(squares, group=self.shard_group)
        plain = nn.utils.get_total_norm([p.grad for p in self.plain if p.grad is not None])
        return (squares + plain.to(squares).square()).sqrt().to(wide(next(iter(self.leaves.values())).dtype))


def build_engine(
    model: nn.Module,
    cfg: OptimConfig,
    world: World,
    shard_group: dist.ProcessGroup | None = None,
    moments: torch.dtype | None = None,
) -> Engine:
    """The engine that `cfg` names; `shard_group` and `moments` as for `NativeEngine`."""
    if cfg.engine == "native":
        return NativeEngine(model, cfg, world, shard_group, moments)
    return ZeroEngine(
        model,
        world,
        weight_decay_groups(dict(model.named_parameters()), cfg),
        lr=lambda step, steps: lr_at(step, cfg, steps),
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        clip_norm=cfg.clip_norm,
        stage=cfg.zero_stage,
        offload=cfg.offload == "cpu",
    )


def weight_decay_groups(parameters: dict[str, nn.Parameter], cfg: OptimConfig) -> list[tuple[list[str], float]]:
    """(names, weight decay) of each group. Vectors (norms' gains) are not decayed: pulling a gain to zero is no
    regulariser. What counts is the shape of the whole parameter, not of a shard."""
    decayed = [name for name, p in parameters.items() if p.ndim > 1]
    others = [name for name, p in parameters.items() if p.ndim <= 1]
    return [(names, decay) for names, decay in ((decayed, cfg.weight_decay), (others, 0.0)) if names]


# Elements whose narrow moments exist in fp32 at one time: 0.25 GB of each on top of what is stored.
WIDENED = 64 << 20


class _NarrowAdamW(torch.optim.AdamW):
    """torch's fused AdamW on fp32 parameters whose moments are stored in bf16 and updated in fp32, piece by piece."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            counts: dict[Tensor, Tensor] = {}
            for piece in _pieces([leaf for leaf in group["params"] if leaf.grad is not None], WIDENED):
                states = [self.state[leaf] for leaf, _ in piece]
                means, squares = (
                    [state[name].view(-1)[part] for state, (_, part) in zip(states, piece, strict=True)]
                    for name in ("exp_avg", "exp_avg_sq")
                )
                wide_means, wide_squares = ([moment.float() for moment in kind] for kind in (means, squares))
                steps = [state["step"].clone() for state in states]  # each piece of a parameter counts from there
                adamw(
                    [leaf.view(-1)[part] for leaf, part in piece],
                    [leaf.grad.reshape(-1)[part] for leaf, part in piece if leaf.grad is not None],
                    wide_means,
                    wide_squares,
                    [],
                    steps,
                    fused=True,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                foreach_copy(means, wide_means)
                foreach_copy(squares, wide_squares)
                counts.update((leaf, step) for (leaf, _), step in zip(piece, steps, strict=True))
            for leaf, step in counts.items():
                self.state[leaf]["step"].copy_(step)


def _pieces(leaves: list[Tensor], elements: int) -> Iterator[list[tuple[Tensor, slice]]]:
    """All elements of `leaves` in order, as lists of (leaf, part of it flattened) of so many elements at most."""
    piece: list[tuple[Tensor, slice]] = []
    room = elements
    for leaf in leaves:
        for start in range(0, max(1, leaf.numel()), elements):
            part = slice(start, min(start + elements, leaf.numel()))
            if part.stop - part.start > room:
                yield piece
                piece, room = [], elements
            piece.append((leaf, part))
            room -= part.stop - part.start
    if piece:
        yield piece


def _torch_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, moments: torch.dtype | None
) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer
    leaves = [leaf for group in groups for leaf in group["params"]]
    if cfg.name == "adamw":
        kind = torch.optim.AdamW if moments is None else _NarrowAdamW
        optimizer = kind(groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps, fused=True)
        for leaf in leaves:
            optimizer.state[leaf] = {
                "step": torch.zeros((), dtype=torch.float32, device=leaf.device),
                "exp_avg": torch.zeros_like(leaf, dtype=moments),
                "exp_avg_sq": torch.zeros_like(leaf, dtype=moments),
            }
    else:
        optimizer = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, fused=True)
        if cfg.momentum:
            for leaf in leaves:
                optimizer.state[leaf] = {"momentum_buffer": torch.zeros_like(leaf)}
    return optimizer


def _shard(tensor: Tensor) -> Tensor:
    """The memory of a DTensor on this rank, outside autograd."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def _like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """`local`, laid out over the ranks as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
