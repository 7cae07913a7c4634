"""The engine that uses torch's own optimizers, and Muon for the matrices inside the layers.

It never waits for the device and never shows the optimizer a DTensor: a parameter that is one is optimised through the
shard on this rank, whatever its mesh, so that weights on different meshes share one fused call. torch's fused AdamW and
SGD divide every gradient by `optimizer.grad_scale` as they read it and do nothing at all where `optimizer.found_inf` is
1. Both are tensors, so clipping costs no pass over the gradients of its own (measured on 9.2 M parameters, one CPU
thread: 0.7-1.7 ms a step against 2.8 for a multiply before it) and a step whose gradient is not finite leaves
parameters, moments and step counts bitwise as they were, decided on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.sharding.fragment import Region
from parallel.sharding.local import local_region
from parallel.world import World
from trainer.config.keys import OptimConfig
from trainer.model.numerics import wide
from trainer.optim.hidden import hidden_matrices
from trainer.optim.host_adamw import HostAdamW
from trainer.optim.muon import Muon
from trainer.optim.narrow_adamw import NarrowAdamW
from trainer.optim.norm import sum_of_squares
from trainer.optim.schedule import groups, lr_at


class NativeEngine:
    """torch's fused AdamW or SGD, or Muon beside AdamW, over this rank's shards.

    `stages`: this rank's parts of the model, whose parameters differ in name. `shard_group`: the ranks that together
    hold every sharded parameter of these stages once; None if no parameter is sharded or there is only one rank.
    `alike`: the ranks that hold the same stages, None for all of `world`. Plain parameters are replicas: their
    gradients are summed over these ranks here, and Muon divides its work among them. Gradients of sharded ones arrive
    summed, from the code that sharded them. `moments`: the dtype of AdamW's moments and Muon's momentum; None for that
    of the parameters. `rates`: the names of the parameters that are trained and saved, each with the ratio of its
    learning rate to `optim.lr`; None for all that are not frozen, at `optim.lr`. `skip_above`: a step whose norm is
    above it is skipped as one that is not finite; 0: none is.
    """

    def __init__(
        self,
        stages: nn.Module | Sequence[nn.Module],
        cfg: OptimConfig,
        world: World,
        shard_group: dist.ProcessGroup | None = None,
        moments: torch.dtype | None = None,
        alike: World | None = None,
        rates: Mapping[str, float] | None = None,
        skip_above: float = 0.0,
    ) -> None:
        self.stages = [stages] if isinstance(stages, nn.Module) else stages
        self.cfg, self.world, self.alike = cfg, world, alike or world
        self.shard_group, self.moments, self.rates = shard_group, moments, rates
        self.skip_above = skip_above or torch.inf

    def prepare(self) -> None:
        """Build the optimizer and its state.

        The state exists before the first step so that a checkpoint can be loaded into it, and because fused SGD would
        otherwise take an uninitialised momentum buffer into use when its very first step is skipped.
        """
        named = {name: p for stage in self.stages for name, p in stage.named_parameters()}
        self.named = named if self.rates is None else {name: p for name, p in named.items() if name in self.rates}
        self.plain = [p for p in self.named.values() if p.requires_grad and not isinstance(p, DTensor)]
        # The tensors to optimise: a parameter itself, or this rank's shard of it, in the memory that FSDP gathers from.
        # (FSDP moves a shard when a model on meta gets its values, so not after this.)
        self.leaves = {name: _shard(p) if isinstance(p, DTensor) else p for name, p in self.named.items()}
        self.optimizers = self._build_optimizers()
        # One tensor in a checkpoint: the steps skipped consecutively up to now, and since the start of the run.
        self.skipped = torch.zeros(2, device=next(iter(self.leaves.values())).device)
        self.skipped_in_a_row, self.skipped_in_all = self.skipped.unbind()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, step: int, steps: int) -> dict[str, Tensor]:
        self.alike.sum_gradients(self.plain)
        self._take_gradients()
        norm = self._gradient_norm()
        found_inf = (~torch.isfinite(norm) | (norm > self.skip_above)).float()
        self.skipped.add_(found_inf)
        self.skipped_in_a_row.mul_(found_inf)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, self.cfg, steps) * group["lr_ratio"]
            # The interface that torch.amp.GradScaler uses; the optimizers read the attributes with getattr.
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            if self.cfg.clip_norm > 0:
                optimizer.grad_scale = (norm / self.cfg.clip_norm).clamp(min=1.0).float()  # type: ignore[attr-defined]
            optimizer.step()
        self._forget_gradients()
        return self._scalars(norm)

    def drop_gradients(self) -> dict[str, Tensor]:
        """Take no step: weights and all state stay, step counts and the count of skipped steps included. Returns as
        `step`, with a norm of 0."""
        self._forget_gradients()
        return self._scalars(self.skipped.new_zeros((), dtype=wide(next(iter(self.leaves.values())).dtype)))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        held: dict[str, Tensor] = model.state_dict()
        return held if self.rates is None else {name: held[name] for name in held if name in self.rates}

    def refresh(self) -> None:
        """Nothing is held twice."""

    def close(self) -> None:
        """Everything is in memory."""

    def state(self) -> dict[str, Tensor]:
        on_host = self.cfg.offload == "cpu"
        for optimizer in self.optimizers:
            if isinstance(optimizer, HostAdamW):
                optimizer.finish_copies()
        tensors = {"skipped": self.skipped}
        for name, parameter in self.named.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(self.leaves[name], {}).items():
                    # AdamW's step count is one number, equal on all ranks: an empty shard counts its steps too.
                    tensors[f"{name}.{key}"] = _like(parameter, value, on_host) if value.ndim else value
        return tensors

    def _build_optimizers(self) -> list[torch.optim.Optimizer]:
        stages = self.stages if self.cfg.name == "muon" else []
        text = self.cfg.parts.text  # has all of them
        hidden = {name: rows for stage in stages for name, rows in hidden_matrices(stage).items() if not text.freeze}
        ratio = self.cfg.adamw_lr_ratio if self.cfg.name == "muon" else 1.0
        others = {name: p for name, p in self.named.items() if name not in hidden}
        by_torch = [
            {
                "params": [self.leaves[name] for name in group.names],
                "weight_decay": group.decay,
                "lr_ratio": ratio * group.ratio,
            }
            for group in groups(others, self.cfg, self.rates)
        ]
        optimizers = [_torch_optimizer(by_torch, self.cfg, self.moments)] if by_torch else []
        if hidden:
            weights, leaves = ({name: of[name] for name in hidden} for of in (self.named, self.leaves))
            group = (self.alike.group or dist.group.WORLD) if self.alike.size > 1 else None
            optimizers.append(Muon(weights, leaves, hidden, self.cfg, group, self.moments))
        return optimizers

    def _scalars(self, norm: Tensor) -> dict[str, Tensor]:
        return {
            "grad_norm": norm,
            "skipped_in_a_row": self.skipped_in_a_row.clone(),
            "skipped": self.skipped_in_all.clone(),
        }

    def _forget_gradients(self) -> None:
        for tensor in (*self.named.values(), *self.leaves.values()):
            tensor.grad = None

    def _take_gradients(self) -> None:
        for name, parameter in self.named.items():
            if isinstance(parameter, DTensor):
                self.leaves[name].grad = None if parameter.grad is None else _shard(parameter.grad)

    def _gradient_norm(self) -> Tensor:
        """The norm over every element of every parameter once, summed in fp64; the same on every rank of the run.

        Replicas of a part, on other ranks or of a plain parameter, count as their mean: a number that is not finite on
        any rank is then one for all of them, which decide alike about the step.
        """
        held = [self.leaves[name].grad for name, p in self.named.items() if isinstance(p, DTensor)]
        plain = [p.grad for p in self.plain]
        device, ranks = self.skipped.device, self.alike.size
        copies = ranks // (dist.get_world_size(self.shard_group) if self.shard_group is not None else 1)
        squares = sum_of_squares([grad for grad in held if grad is not None], device) / copies
        squares += sum_of_squares([grad for grad in plain if grad is not None], device) / ranks
        return self.world.sum_tensor(squares).sqrt().to(wide(next(iter(self.leaves.values())).dtype))


def _torch_optimizer(
    groups: list[dict[str, Any]], cfg: OptimConfig, moments: torch.dtype | None
) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer
    leaves = [leaf for group in groups for leaf in group["params"]]
    if cfg.name != "sgd" and cfg.offload == "cpu":
        return HostAdamW(groups, moments=moments, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps)
    if cfg.name != "sgd":
        kind = torch.optim.AdamW if moments is None else NarrowAdamW
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


def _like(parameter: nn.Parameter, local: Tensor, on_host: bool) -> Tensor:
    """`local`, laid out over the ranks as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return local
    if on_host:  # a DTensor would move it to the device of its mesh
        return Region(local, tuple(part.start for part in local_region(parameter)), parameter.shape)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
