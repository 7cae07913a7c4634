"""One optimizer step of a tiny model in fp64, on any layout of ranks, through the parts that a run is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import trainer.run.build
from parallel.layout import Place
from parallel.sharding.local import local_part, local_region
from parallel.world import World
from tests.trainer.model.tiny import relative
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, TILES, VISION, place_media
from tests.trainer.tiny_run import tiny_config
from trainer.config.checks.parallel import check
from trainer.config.keys import Config, LoraConfig, ParallelConfig
from trainer.data.batch import Batch, make_batch
from trainer.data.media.balance import Load
from trainer.data.media.placed import alike, placed
from trainer.data.windows import Windows
from trainer.model.decoder import Decoder
from trainer.model.dual_encoder import make_decoder
from trainer.model.experts.held import held_weights
from trainer.model.initial import seeded_normal
from trainer.model.lora.adapt import adapt, adapters, is_b, rates
from trainer.objectives.choose import build_objective
from trainer.objectives.scalars import Scalar, Scalars, Totals, read_totals
from trainer.optim.build import build_engine
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes
from trainer.run.build import Parts, build_pipeline, build_stages, ranks_alike
from trainer.run.step import MEDIA, accumulate_gradients, count_step
from trainer.stages.forward import own_parts

MODEL: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4,
    "num_experts": 8, "experts_per_token": 4, "expert_width": 16, "positions": "fope", "rope_theta": 100.0,
    "max_position": 64, "init_std": 0.2, "balance_coef": 0.02, "z_loss_coef": 1e-2,
}  # fmt: skip
TOWERS: dict[str, Any] = {"vision": VISION, "image_token": IMAGE, "signals": SIGNALS, "signal_token": SIGNAL}
TILE_TOWER: dict[str, Any] = {"vision": TILES, "image_token": IMAGE}
SEQ_LEN = 13  # or 12, where ranks share sequences
GLOBAL_MICRO = 4  # sequences of one micro-batch over all ranks, where no more than four read samples
CLIP = 0.05  # far below the gradient's norm


class Layout(NamedTuple):
    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    ep: int = 1
    cp: int = 1
    cp_kind: str = "ulysses"
    groups: int = 4  # of the router; fewer than ep split the experts' width

    @property
    def ranks(self) -> int:
        return self.pp * self.dp_replicate * self.dp_shard * self.cp

    @property
    def readers(self) -> int:
        return self.dp_replicate * self.dp_shard

    def __str__(self) -> str:
        sizes = {"pp": self.pp, "rep": self.dp_replicate, "shard": self.dp_shard, "cp": self.cp, "ep": self.ep}
        kind = f"{self.cp_kind} " if self.cp > 1 else ""
        width = f", width / {self.ep // self.groups}" if self.ep > self.groups else ""
        return kind + " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) + width


class Case(NamedTuple):
    """A step. schedule: with its stages per rank, 0 for its own number. layers, micro_batches: enough for seven stages
    under every schedule."""

    layout: Layout = Layout()
    schedule: tuple[str, int] = ("1f1b", 0)
    gradient: str = "ste"
    dispatch: str = "all_gather"
    recompute: str = "none"
    objective: str = "next_token"
    experts: str = "fp32"  # fp64 here; or fp8_reference
    layers: int = 7
    micro_batches: int = 6
    optim: str = "sgd"
    offload: bool = False
    kept: str = "exact"
    towers: bool = False  # with unequal images and signals
    tiles: bool = False  # the tower of Intern-S1 instead of those of Intern-S1-Pro
    many_images: bool = False
    balance: bool = False  # of images
    parts: tuple[tuple[str, str, Any], ...] = ()  # part, key and value of optim.parts
    reduce_every: str = "auto"
    lora: str = "none"  # lora.target

    seq_len: int = SEQ_LEN
    sequences: int = GLOBAL_MICRO  # of one micro-batch over all ranks

    def alone(self) -> Case:
        """The step of one process that this one must equal."""
        return self._replace(
            layout=Layout(groups=self.layout.groups), schedule=("1f1b", 0), dispatch="all_gather", recompute="none",
            offload=False, kept="exact", reduce_every="auto", balance=False,
        )  # fmt: skip

    def config(self) -> Config:
        layout = self.layout
        cfg = tiny_config(
            "unused",
            model=MODEL
            | {"num_layers": self.layers, "router_gradient": self.gradient, "router_groups": layout.groups}
            | ((TILE_TOWER if self.tiles else TOWERS) if self.towers else {}),
            objective=self.objective,
            recompute=self.recompute,
            offload_activations=self.offload,
            global_batch=self.sequences * self.micro_batches,
            micro_batch=self.sequences // layout.readers,
            loss_chunk=10,
            name=self.optim,
            momentum=0.0,
            lr=0.1,
            warmup_steps=0,
            weight_decay=0.0,
            clip_norm=CLIP,
        )
        for part, key, value in self.parts:
            setattr(getattr(cfg.optim.parts, part), key, value)
        cfg.data.seq_len = self.seq_len
        cfg.precision.experts = self.experts
        cfg.precision.kept = self.kept
        cfg.lora = LoraConfig(target=self.lora, rank=3, alpha=6.0, plus_ratio=4.0)
        cfg.parallel = ParallelConfig(
            pp=layout.pp,
            dp_replicate=layout.dp_replicate,
            dp_shard=layout.dp_shard,
            ep=layout.ep,
            cp=layout.cp,
            cp_kind=layout.cp_kind,
            schedule=self.schedule[0],
            stages_per_rank=self.schedule[1],
            dispatch=self.dispatch,
            reduce_every=self.reduce_every,
            balance_towers=self.balance,
        )
        assert not (faults := check(cfg, layout.ranks)), faults
        return cfg


class Step(NamedTuple):
    """The results of a step, whole and by name. clip: what the gradients were divided by. counts: of `count_step`."""

    numbers: dict[str, float | None]
    counts: dict[str, int]
    clip: float
    grads: dict[str, Tensor]
    weights: dict[str, Tensor]
    load: Load | None  # of the vision tower, where images are spread


# ---- data


def sequence(number: int) -> tuple[Any, Any, Any]:
    """Tokens, starts of documents and unsupervised prefixes of a sequence. Their numbers differ from one to the next;
    one in seven is not supervised at all. Four of a micro-batch have no token twice, so that no two documents
    are equally near to a third."""
    random = np.random.default_rng(number)
    starts = random.random(SEQ_LEN + 1) < random.choice([0.02, 0.15, 0.4])
    prefix = random.random(SEQ_LEN + 1) < (1.0 if number % 7 == 3 else random.choice([0.0, 0.3]))
    tokens = 1 + number % GLOBAL_MICRO * (SEQ_LEN + 1) + random.permutation(SEQ_LEN + 1)
    return tokens, starts, prefix


def step_batches(case: Case, place: Place, step: int = 0) -> list[Batch]:
    """A rank's micro-batches, whole sequences."""
    micro, batches = case.sequences // place.readers, []
    for number in range(step * case.micro_batches, (step + 1) * case.micro_batches):
        first = number * case.sequences + place.reader * micro
        tokens, starts, prefix = (
            np.stack(parts)[:, : case.seq_len + 1]
            for parts in zip(*map(sequence, range(first, first + micro)), strict=True)
        )
        if case.towers:
            numbers = range(first, first + micro)
            media = place_media(tokens, starts, prefix, numbers, tiles=case.tiles, many_images=case.many_images)
        batch = make_batch(Windows(tokens, starts, prefix), range(first, first + micro))
        if case.towers:
            batch = placed(replace(batch, media=media), case.config().model)
        batches.append(batch)
    return batches


# ---- the parts of a run, in fp64


def world_of_test() -> World:
    if not dist.is_initialized():
        return World()
    return World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)


def double_decoder(cfg: Any, _compute: torch.dtype, *rest: Any) -> Decoder:
    return make_decoder(cfg, None, *rest).double()


def build_parts(case: Case) -> tuple[Parts, World]:
    """Without data."""
    cfg, world = case.config(), world_of_test()
    objective, meshes = build_objective(cfg.train), build_meshes(cfg, "cpu")
    alike, place = ranks_alike(world, meshes), meshes.layout.place(world.rank) if meshes else Place()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.run.build, "make_decoder", double_decoder)
        patch.setattr(trainer.run.build, "adapt", lambda model, lora, _: adapt(model, lora).double())
        plan, stages = build_stages(cfg, world, alike, meshes, place, objective)
    for stage in stages.values():
        vary_norms(stage)
    pipeline, forward = build_pipeline(cfg, plan, stages, objective, alike, meshes)
    trained = {name: rate for stage in stages.values() for name, rate in rates(stage, cfg.lora).items()}
    engine = build_engine(
        list(stages.values()), cfg.optim, world, meshes and meshes.shard_group, None, alike, trained or None
    )
    engine.prepare()
    data: Any = None
    return Parts(data, [], meshes, place, alike, objective, stages, pipeline, forward, engine), world


@torch.no_grad()
def vary_norms(stage: Decoder) -> None:
    """Gains that are all 1 would hide one that is swapped or forgotten, and Bs at zero every fault of an A."""
    of_adapters = adapters(stage)
    for name, weight in stage.named_parameters():
        if weight.ndim == 1:
            local_part(weight).copy_((1 + 0.3 * seeded_normal(weight.shape, 7, name))[local_region(weight)])
        elif name in of_adapters and is_b(name):
            local_part(weight).copy_((0.3 * seeded_normal(weight.shape, 7, name))[local_region(weight)])


def forward_backward(parts: Parts, world: World, batches: Sequence[Batch], units: int) -> tuple[Totals, Load | None]:
    """As the training loop does. Also returns the load of the vision tower, where images are spread."""
    batches, load = own_parts(parts.forward, batches)
    if parts.pipeline is None:
        return accumulate_gradients(parts.model, parts.engine, parts.objective, batches, units, world, step=1), load
    with held_weights(block.moe.experts for stage in parts.stages.values() for block in stage.blocks):
        return parts.pipeline.accumulate(batches, units, step=1), load


def one_step(parts: Parts, world: World, batches: Sequence[Batch]) -> Step | None:
    """Forward, backward and update; None except on rank 0."""
    counts = count_step(parts.objective, batches, world, parts.place)
    media = {kind: counts[kind] > 0 for kind in MEDIA}
    batches = [alike(batch, parts.forward.cfg, **media) for batch in batches]
    totals, load = forward_backward(parts, world, batches, counts["units"])
    grads, clip = {}, 1.0

    def note(optimizer: Any, *_: Any) -> None:
        nonlocal clip
        clip = float(optimizer.grad_scale)
        for name, leaf in engine.leaves.items():
            if leaf.grad is not None:
                grads[name] = part_of(engine.named[name], leaf.grad)

    engine = parts.engine
    assert isinstance(engine, NativeEngine)
    handles = [optimizer.register_step_pre_hook(note) for optimizer in engine.optimizers[:1]]  # a stage may train none
    update = engine.step(1, 10)
    for handle in handles:
        handle.remove()
    totals.add(Scalars({name: Scalar(value, ranks="same") for name, value in update.items()}))
    (numbers,) = read_totals([totals], world, stages=parts.pipeline is not None)
    weights = {name: part_of(p, local_part(p)) for name, p in engine.named.items()}
    of_all = gather_first(world, (parts.place.pp, grads, weights))
    if world.rank:
        return None
    found = [join([(stage, of_rank[n]) for stage, *of_rank in of_all]) for n in (0, 1)]
    return Step(numbers, counts, clip, *found, load)


def gather_first(world: World, value: Any) -> list[Any]:
    """The values of all ranks, on rank 0."""
    found: list[Any] = [value] * world.size
    if world.size > 1:
        dist.gather_object(value, found if world.rank == 0 else None)
    return found


class Part(NamedTuple):
    """A rank's part of a tensor. values: an array, because pickling a tensor takes 0.2 ms."""

    shape: torch.Size
    region: tuple[slice, ...]
    values: np.ndarray[Any, Any]


def part_of(parameter: Tensor, local: Tensor) -> Part:
    """`local`, which is laid out as `parameter` is on this rank."""
    return Part(parameter.shape, local_region(parameter), local.detach().clone().numpy())


def join(of_ranks: Sequence[tuple[int, dict[str, Part]]]) -> dict[str, Tensor]:
    """Whole tensors from the parts of every rank, each given with its place in the pipeline; infinite where the ranks'
    copies differ."""
    found: dict[str, Tensor] = {}
    owners: dict[str, int] = {}
    for stage, parts in of_ranks:
        for name, (shape, region, values) in parts.items():
            assert owners.setdefault(name, stage) == stage, f"{name} is in two stages"
            tensor = found.setdefault(name, torch.full(shape, torch.nan, dtype=torch.float64))
            there, of_rank = tensor[region], torch.from_numpy(values)
            tensor[region] = torch.where(there.isnan() | (there == of_rank), of_rank, torch.inf)
    assert not [name for name, tensor in found.items() if tensor.isnan().any()], "a part is missing"
    return found


def run_steps(cases: Sequence[Case]) -> list[Step | None]:
    """A step of each case, from its start."""
    results = []
    for case in cases:
        parts, world = build_parts(case)
        results.append(one_step(parts, world, step_batches(case, parts.place)))
    return results


@cache
def reference(case: Case) -> Step:
    (found,) = run_steps([case])
    assert found is not None
    return found


# ---- comparison


class Errors(NamedTuple):
    """The largest relative differences."""

    loss: float  # of loss, balance, z and the other logged means
    norm: float  # of the gradient's norm, and of the factor that clips it
    grads: float
    weights: float
    where: str  # the worst gradient


def errors(found: Step, expected: Step) -> Errors:
    """Raises AssertionError where names or counts differ."""
    assert found.counts == expected.counts
    assert found.numbers.keys() == expected.numbers.keys()
    assert found.grads.keys() == expected.grads.keys()
    assert found.weights.keys() == expected.weights.keys()
    scalars = [_relative(found.numbers[name], expected.numbers[name]) for name in expected.numbers]
    norm = _relative(found.numbers["grad_norm"], expected.numbers["grad_norm"])
    of_grads = {name: relative(found.grads[name], grad) for name, grad in expected.grads.items()}
    where = max(of_grads, key=lambda name: of_grads[name])
    return Errors(
        max(scalars),
        max(norm, _relative(found.clip, expected.clip)),
        of_grads[where],
        max(relative(found.weights[name], weight) for name, weight in expected.weights.items()),
        where,
    )


def _relative(found: float | None, expected: float | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    return abs(found - expected) / abs(expected) if expected else abs(found)
