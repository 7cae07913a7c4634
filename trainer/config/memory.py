"""The memory that one rank of a run needs at least, counted from the configuration alone. No torch here.

Weights, gradients and the optimizer's state are exact for the native engine: the sum of the shapes that
`trainer/parallelize.py` leaves on a rank, without the padding of uneven shards (tests compare with `octavo layout`).
So are the weights that stay gathered, with that padding, and the gradients that are added up on a rank, for a whole
step, under a pipeline.
Activations depend on back ends and kernels, so only a lower bound is counted: the inputs of the text model's layers,
which every setting of `train.recompute` keeps, of every micro-batch that is under way, in the format of
`precision.kept`; not those of towers, which depend on the data. With `train.offload_activations` they are on the host
(but for inputs below 64 KiB), and on the device those of two layers that follow each other in a stage: the one at work,
and the next one on its way. With `train.recompute=full` little else is kept between the passes of a pipeline (tests
compare with `octavo layout`).

Runs with adapters are close to a GPU's limit by design, so for them the rest of a step is estimated too: `_working`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from parallel.pipeline.cut import StageCut
from trainer.config.keys import Config
from trainer.config.model import ModelConfig, Shape
from trainer.config.places import Held, by_deepspeed, on_host
from trainer.config.ranks import RankMap, cut_model, map_ranks, most_windows

NUMBER = {"fp32": 4, "bf16": 2}  # bytes
# What a simulated router prefers: logits fall by this much from the first expert to the last, beside random ones of
# variance 1. With the last, all tokens select the same experts.
ROUTERS = {"uniform": 0.0, "skewed": 3.0, "adversarial": 1e6}
TILE = 128  # numbers that share a scale of one byte in FP8; a row's bytes are a multiple of 8
# Rows of a token that are in memory at once, in the format of the linears, while a layer is computed again and its
# gradients are taken, fitted to simulated ranks (docs/lora_memory.md): of the hidden size for each selected expert, and
# that more where experts have adapters; of the experts' width for each selected expert; of queries, keys and values;
# and of the hidden size for the token, one less where attention has no adapters, whose input it would be. START: of the
# hidden size, while embedding and LM head are gathered.
EXPERT_ROWS, ADAPTED_ROWS, WIDTH_ROWS, ATTENTION_ROWS, TOKEN_ROWS, START = 6, 2, 6, 2, 10, 12
TOKEN = 3 * 8  # bytes of a token of a batch on the host: its id, position and label
OF_ROLLOUT = 3 * 4 + 1  # of a token of a rollout besides: advantage, log-probability, share, and if it counts


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. activations, batches, moved: at least these. exact: False where the first three are estimates.

    weights, gradients, optimizer: this rank's parts. gathered: whole weights that stay for the step, besides the parts;
    accumulated: whole gradients of the step's micro-batches, in place of the parts until they are reduced. buffers: for
    gathered weights and pieces of the state, where these are offloaded. offloaded: of the first three, those on the
    host of a GPU. stored: of the first three, those in files on NVMe. locked: on the host on top, for pieces of these.
    starting: on the host while the weights are made. moved: activations on the host, besides those on the device.
    working: with adapters, an estimate of what a step needs on a GPU besides all these. reference: of rl.kl_coef, a
    second set of this rank's parts of the weights. rollouts: what batches of rollouts have besides tokens, on the host
    until their micro-batch comes.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batches: int
    gathered: int = 0
    accumulated: int = 0
    exact: bool = True
    buffers: int = 0
    offloaded: int = 0
    stored: int = 0
    locked: int = 0
    starting: int = 0
    moved: int = 0
    working: int = 0
    reference: int = 0
    rollouts: int = 0

    @property
    def held(self) -> int:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """At least, in memory."""
        gradients = max(self.gradients, self.accumulated)
        state = self.weights + gradients + self.optimizer + self.gathered - self.stored
        rest = self.batches + self.buffers + self.locked + self.reference + self.rollouts
        return state + self.activations + self.moved + rest

    @property
    def device(self) -> int:
        """At least these on a GPU."""
        return self.total - self.offloaded - self.moved - self.locked - self.rollouts + self.working

    @property
    def host(self) -> int:
        """At least these on the host of a GPU."""
        return max(self.offloaded + self.moved + self.locked + self.batches + self.rollouts, self.starting)


def rank_memory(cfg: Config, world_size: int, rank: int = 0) -> RankMemory:
    """Bytes of `rank` out of `world_size`. `cfg` must be valid for that size."""
    ranks = map_ranks(cfg.parallel, cfg.model, world_size)
    layout, place = ranks.layout, ranks.layout.place(rank)
    cuts = cut_model(cfg, ranks.plan)
    own = [cuts[stage] for stage in ranks.plan.of_rank(place.pp)]
    layers, ends = sum(cut.stop - cut.start for cut in own), _Ends.of(own, cfg.model)
    share = partial(_share, layout.shard, rank % layout.shard)
    part = _elements(cfg, layers, ends, layout.shard, share)
    weights = 4 * part.all
    updated, text = part.all - part.frozen, cfg.optim.parts.text
    unused = 0 if cfg.train.trains_head or text.freeze else part.head
    unused += _routers_of_rl(cfg, part)
    trained, hidden = updated - unused, 0 if text.freeze else part.hidden
    if cfg.lora.target != "none":
        trained = updated = _adapters(cfg, layers, layout.shard, share)
        hidden, weights = 0, _frozen(cfg, part) + 4 * updated
    optimizer = _state(cfg, updated, hidden) + 4 * _step_counts(cfg, layers, ends) + 8  # and of skipped steps
    micro_batches = most_windows(cfg) // (cfg.train.micro_batch * layout.readers)
    tokens = cfg.train.micro_batch * cfg.data.seq_len // layout.cp
    under_way = ranks.plan.in_flight(place.pp, micro_batches)  # of one stage each
    passes = layers * under_way // len(own)  # of one layer each, in flight
    inputs, moved = tokens * _kept_row(cfg), 0
    activations = passes * inputs
    if cfg.train.offload_activations:
        activations, moved = min(2, max(cut.stop - cut.start for cut in own)) * inputs, activations
    if cfg.precision.kept == "fp8":  # the selected experts, by number
        activations += passes * tokens * cfg.model.experts_per_token * NUMBER["fp32"]
    waiting = most_windows(cfg) * cfg.data.seq_len // layout.readers  # tokens of a step
    gathered_layers = 1 if cfg.parallel.reshard_dense else layers
    gathered = accumulated = 0
    if cfg.optim.engine == "deepspeed":
        held, exact = by_deepspeed(cfg, part.all, trained, world_size), False
    elif cfg.optim.offload == "cpu":
        held, exact = on_host(weights, 4 * trained, optimizer, _state(cfg, updated, hidden)), True
    else:
        held, exact = Held(weights, 4 * trained, optimizer), True
    if cfg.optim.engine == "native" and micro_batches > 1:
        gathered, accumulated = _resident(cfg, ranks, layers, ends)
    return RankMemory(
        held.weights,
        held.gradients,
        held.optimizer,
        activations,
        waiting * TOKEN,
        gathered,
        accumulated,
        exact,
        held.buffers,
        held.host,
        held.stored,
        held.locked,
        held.starting,
        moved,
        0 if cfg.lora.target == "none" else _working(cfg, ranks, gathered_layers, ends, tokens, held, activations),
        weights if cfg.rl.kl_coef > 0 else 0,
        waiting * _of_rollouts(cfg),
    )


def _working(cfg: Config, ranks: RankMap, layers: int, ends: _Ends, tokens: int, held: Held, activations: int) -> int:
    """Bytes that a step of a run with adapters needs at its peak besides `held` and `activations`: gathered weights,
    and the temporary tensors of one layer's backward pass, of the start of a step, or of the optimizer. What layers
    keep besides their inputs where `train.recompute` is not full is left out. layers: whose attention is gathered at
    once. tokens: of a micro-batch on this rank."""
    m, row = cfg.model, NUMBER[cfg.precision.linears]
    whole, table, base = _elements(cfg, 1, ends, 1, lambda rows: rows), 0, 0
    matrices = 1 if cfg.lora.base == "fp8" else row
    if ranks.layout.shard > 1:
        table = row * whole.embedding + 4 * whole.head
        base = matrices * whole.attention * layers
    scales = 4 * held.weights // TILE**2 if cfg.lora.base == "fp8" else 0
    of_experts = EXPERT_ROWS + (ADAPTED_ROWS if cfg.lora.target != "attention" else 0)
    selected = m.experts_per_token * (of_experts * m.hidden_size + WIDTH_ROWS * m.expert_width)
    attention = ATTENTION_ROWS * m.head_dim * (m.num_heads + 2 * m.num_kv_heads)
    of_token = TOKEN_ROWS - (cfg.lora.target == "experts")
    backward = table + base + tokens * row * (selected + attention + of_token * m.hidden_size)
    start = 2 * table + base + tokens * row * START * m.hidden_size if table else 0  # before any input is kept
    widened = 2 * held.gradients if cfg.precision.moments != "fp32" else 0  # both moments, in fp32
    return scales + max(backward, start - activations, widened - activations)


def _of_rollouts(cfg: Config) -> int:
    """Bytes that a token of a batch of rollouts has besides: routes, where they are replayed or compared, too."""
    if cfg.train.objective != "policy":
        return 0
    return OF_ROLLOUT + (2 * cfg.model.num_layers * cfg.model.experts_per_token if cfg.rl.replay != "off" else 0)


def _kept_row(cfg: Config) -> int:
    """Bytes in which a token's input of a layer is kept."""
    hidden = cfg.model.hidden_size
    if cfg.precision.kept == "exact":
        return hidden * NUMBER[cfg.precision.linears]
    scales = -(-hidden // TILE)
    return hidden + scales + -(hidden + scales) % 8


def checkpoint_bytes(cfg: Config) -> int:
    """Bytes of one checkpoint: the trained weights and moments of all ranks, once; without adapters all weights."""
    if cfg.lora.target != "none":
        adapters = _adapters(cfg, cfg.model.num_layers, 1, lambda rows: rows)
        return 4 * adapters + _state(cfg, adapters, 0)
    return 4 * cfg.model.num_params() + _state(cfg, cfg.model.num_params(), cfg.model.hidden_matrix_params())


def gigabytes(size: float) -> str:
    """Such as "62.1 MB" or "1,107.2 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _state(cfg: Config, weights: int, hidden: int) -> int:
    """Bytes of the moments of `weights` elements, including `hidden` in matrices inside the layers."""
    moments = {"adamw": 2 * weights, "muon": 2 * weights - hidden}
    return moments.get(cfg.optim.name, weights * (cfg.optim.momentum > 0)) * NUMBER[cfg.precision.moments]


def _step_counts(cfg: Config, layers: int, ends: _Ends) -> int:
    """The weights for which AdamW counts its steps."""
    in_layer, parts = {"adamw": 9, "muon": 5}, cfg.optim.parts  # one of them the router's
    if cfg.optim.name not in in_layer:
        return 0
    if (target := cfg.lora.target) != "none":
        return layers * (8 * (target != "experts") + 4 * (target != "attention"))
    towers = sum(len(shapes) for part, shapes in _tower_shapes(cfg.model).items() if not getattr(parts, part).freeze)
    text = 0 if parts.text.freeze else ends.embedding + 2 * ends.head + (in_layer[cfg.optim.name] - 1) * layers
    return text + (0 if parts.router.freeze else layers) + ends.embedding * towers


def largest_memory(cfg: Config, world_size: int, *, gpu: bool = False) -> tuple[int, RankMemory]:
    """The rank that needs the most, of a GPU or in all, and its bytes. Arguments as for `rank_memory`."""
    # The first rank of a stage holds the largest parts. Stages after the first hold fewer micro-batches and no more
    # layers, but the last, which has the head.
    layout = map_ranks(cfg.parallel, cfg.model, world_size).layout
    stages = sorted({0, min(1, layout.pp - 1), layout.pp - 1})
    found = [(stage * layout.stage_ranks, rank_memory(cfg, world_size, stage * layout.stage_ranks)) for stage in stages]
    return max(found, key=lambda of: of[1].device if gpu else of[1].total)


def host_memory(cfg: Config, world_size: int, ranks: int) -> int:
    """Bytes that the first `ranks` of `world_size` ranks with GPUs keep on the host."""
    size = map_ranks(cfg.parallel, cfg.model, world_size).layout.stage_ranks
    # All ranks of a stage have the same activations, and parts of the state like the first one's or smaller.
    firsts = [rank_memory(cfg, world_size, first).host for first in range(0, ranks, size)]
    counts = [min(size, ranks - first) for first in range(0, ranks, size)]
    return sum(of_rank * count for of_rank, count in zip(firsts, counts, strict=True))


@dataclass(frozen=True)
class _Ends:
    """Parts of the model outside of the layers: the embedding and the towers; the final norm and the LM head."""

    embedding: bool
    head: bool

    @staticmethod
    def of(stages: list[StageCut], model: ModelConfig) -> _Ends:
        return _Ends(stages[0].start == 0, stages[-1].stop == model.num_layers)


@dataclass(frozen=True)
class _Elements:
    """Elements of weights. hidden: those in matrices inside the layers, attention's and experts'. head: the LM head's.
    experts, attention: of their matrices. embedding: the embedding's."""

    all: int
    hidden: int
    head: int
    experts: int
    attention: int
    whole: int  # of vectors that are not sharded
    frozen: int  # by optim.parts
    router: int
    embedding: int

    @property
    def others(self) -> int:
        """Those that are sharded, but are not in matrices inside the layers."""
        return self.all - self.hidden - self.whole


def _share(parts: int, index: int, rows: int) -> int:
    """Rows of part `index` where torch cuts `rows` into `parts`: equal ones, then a shorter one, then none."""
    size = -(-rows // parts)
    return max(0, min(size, rows - index * size))


def _padded(parts: int, rows: int) -> int:
    """Rows that torch gathers: as many from each of `parts` as the longest has."""
    return parts * _share(parts, 0, rows)


def _elements(cfg: Config, layers: int, ends: _Ends, parts: int, share: Callable[[int], int]) -> _Elements:
    """Elements that a rank has of some layers and ends: an equal part of the experts out of `parts`, and `share(n)` of
    n rows of everything else."""
    m = cfg.model

    whole = 2 * m.head_dim * layers if cfg.precision.linears == "bf16" else 0  # norms of queries and keys
    qkv = m.head_dim * (m.num_heads + 2 * m.num_kv_heads)
    attention = layers * (share(qkv) * m.hidden_size + share(m.hidden_size) * m.num_heads * m.head_dim)
    # whole experts, or equal parts of their width
    experts = layers * (3 * m.num_experts * m.expert_width * m.hidden_size // parts)
    norms = whole or layers * 2 * share(m.head_dim)
    # norms before attention and experts, router
    others = layers * (2 * share(m.hidden_size) + share(m.num_experts) * m.hidden_size) + norms
    table = share(m.vocab_size) * m.hidden_size
    towers = {
        part: ends.embedding * sum(share(shape[0]) * math.prod(shape[1:]) for shape in shapes)
        for part, shapes in _tower_shapes(m).items()
    }
    outside = ends.embedding * table + ends.head * (table + share(m.hidden_size))
    hidden, router = attention + experts, layers * share(m.num_experts) * m.hidden_size
    of_parts = {**towers, "router": router, "text": others + hidden + outside - router}
    frozen = sum(size for part, size in of_parts.items() if getattr(cfg.optim.parts, part).freeze)
    return _Elements(sum(of_parts.values()), hidden, ends.head * table, experts, attention, whole, frozen,
                     router, ends.embedding * table)  # fmt: skip


def _routers_of_rl(cfg: Config, part: _Elements) -> int:
    """Elements of the routers that `rl.freeze_router` leaves as they are: they have moments, and no gradients."""
    return part.router if cfg.rl.freeze_router and not cfg.optim.parts.router.freeze else 0


def _frozen(cfg: Config, part: _Elements) -> int:
    """Bytes of a rank's part of the base that adapters are trained for, without the scales of a base in FP8."""
    linears = NUMBER[cfg.precision.linears]
    matrices = 1 if cfg.lora.base == "fp8" else linears
    others = part.all - part.hidden - part.embedding
    return matrices * part.hidden + linears * part.embedding + 4 * others


def _adapters(cfg: Config, layers: int, parts: int, share: Callable[[int], int]) -> int:
    """Elements of the adapters of some layers that a rank has; arguments as for `_elements`."""
    m, r = cfg.model, cfg.lora.rank
    heads, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
    found = 0
    if cfg.lora.target != "experts":
        into = 3 * share(r) * m.hidden_size + (share(heads) + 2 * share(kv)) * r
        found += into + share(r) * heads + share(m.hidden_size) * r
    if cfg.lora.target != "attention":
        found += m.num_experts * r * (2 * m.hidden_size + 3 * m.expert_width) // parts
    return layers * found


def _tower_shapes(model: ModelConfig) -> dict[str, list[Shape]]:
    """Part of the model, a key of `optim.parts`, that is a tower -> the shapes of its parameters."""
    vision, signals = model.vision, model.signals
    merger = vision.merger_shapes() if vision is not None else []
    rest = vision.shapes()[: -len(merger)] if vision is not None else []
    return {"vision": rest, "merger": merger, "signals": signals.shapes() if signals is not None else []}


def _resident(cfg: Config, ranks: RankMap, layers: int, ends: _Ends) -> tuple[int, int]:
    """Bytes of the weights that a rank keeps gathered between a step's micro-batches, and of the whole gradients that
    it adds up. Linears and experts are gathered in their compute dtype, all else in fp32."""
    layout, p, compute = ranks.layout, cfg.parallel, NUMBER[cfg.precision.linears]
    if layout.shard == 1:
        return 0, 0
    whole = _elements(cfg, layers, ends, 1, lambda rows: rows)
    padded = _elements(cfg, layers, ends, 1, partial(_padded, layout.shard))
    experts = whole.experts // layout.ep
    alone = experts if layout.dp_replicate * layout.expert_dp == 1 else 0  # experts that no other rank has a part of
    if cfg.lora.target != "none":
        adapters = _adapters(cfg, layers, 1, lambda rows: rows)
        base = (1 if cfg.lora.base == "fp8" else compute) * (experts - alone)
        accumulated = NUMBER[cfg.precision.accumulate] * adapters if p.reduce_every == "step" else 0
        return 0 if p.reshard_experts else base, accumulated
    sharded = experts - alone + whole.attention + whole.others
    sharded -= 0 if cfg.train.trains_head else whole.head
    if cfg.optim.parts.text.freeze:
        sharded, alone_too = whole.all - whole.frozen, 0
    else:
        sharded, alone_too = sharded - whole.frozen - _routers_of_rl(cfg, whole), alone + whole.whole
    accumulated = NUMBER[cfg.precision.accumulate] * sharded + 4 * alone_too
    if ranks.plan.ranks > 1:
        each = p.reduce_every == "micro_batch"
        return compute * (experts - alone + padded.attention) + 4 * padded.others, 0 if each else accumulated
    return 0 if p.reshard_experts else compute * (experts - alone), accumulated if p.reduce_every == "step" else 0
