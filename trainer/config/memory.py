"""The memory that one rank of a run needs at least, counted from the configuration alone. No torch here.

Weights, gradients and the optimizer's state are exact for the native engine: the sum of the shapes that
`trainer/parallelize.py` leaves on a rank, without the padding of uneven shards (tests compare with `octavo layout`).
Activations depend on back ends and kernels, so only a lower bound is counted: the inputs of the layers, which every
setting of `train.recompute` keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from parallel.errors import Fault
from trainer.config.keys import Config
from trainer.config.places import Held, by_deepspeed, on_host
from trainer.config.ranks import map_ranks

NUMBER = {"fp32": 4, "bf16": 2}  # bytes
# What a simulated router prefers: logits fall by this much from the first expert to the last, beside random ones of
# variance 1. With the last, all tokens select the same experts.
ROUTERS = {"uniform": 0.0, "skewed": 3.0, "adversarial": 1e6}
TOKEN = 3 * 8  # bytes of a token of a batch on the host: its id, position and label


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. activations, batches: at least these. buffers: for gathered weights and pieces of the state,
    where these are offloaded. exact: False where the first three are estimates. offloaded: of the first three, those on
    the host of a GPU. starting: on the host while the weights are made."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batches: int
    exact: bool = True
    buffers: int = 0
    offloaded: int = 0
    starting: int = 0

    @property
    def held(self) -> int:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """At least."""
        return self.held + self.activations + self.batches + self.buffers

    @property
    def device(self) -> int:
        """At least these on a GPU."""
        return self.total - self.offloaded

    @property
    def host(self) -> int:
        """At least these on the host of a GPU."""
        return max(self.offloaded + self.batches, self.starting)


def rank_memory(cfg: Config, world_size: int, rank: int = 0) -> RankMemory:
    """Bytes of `rank` out of `world_size`. `cfg` must be valid for that size."""
    weights, hidden = _elements(cfg, world_size, rank)
    head = _share(cfg.model.vocab_size, *_shard(cfg, world_size, rank)) * cfg.model.hidden_size
    trained = weights - (head if cfg.train.objective == "contrastive" else 0)  # which leaves the LM head out
    optimizer = _state(cfg, weights, hidden) + 4 * _step_counts(cfg) + 8  # and counts of skipped steps
    tokens = cfg.train.micro_batch * cfg.data.seq_len
    activations = tokens * cfg.model.hidden_size * cfg.model.num_layers * NUMBER[cfg.precision.linears]
    batches = cfg.train.global_batch * cfg.data.seq_len * TOKEN // world_size
    if cfg.optim.engine == "deepspeed":
        held, exact = by_deepspeed(cfg, weights, trained, world_size), False
    elif cfg.optim.offload == "cpu":
        held, exact = on_host(4 * weights, 4 * trained, optimizer, _state(cfg, weights, hidden)), True
    else:
        held, exact = Held(4 * weights, 4 * trained, optimizer), True
    return RankMemory(
        held.weights,
        held.gradients,
        held.optimizer,
        activations,
        batches,
        exact,
        held.buffers,
        held.host,
        held.starting,
    )


def checkpoint_bytes(cfg: Config) -> int:
    """Bytes of one checkpoint: the weights and moments of all ranks, once."""
    return 4 * cfg.model.num_params() + _state(cfg, cfg.model.num_params(), cfg.model.hidden_matrix_params())


def too_large(cfg: Config, world_size: int, rank: int, available: int, place: str) -> Fault | None:
    """A fault if `rank` cannot fit into `available` bytes; None if it may.

    place: where the bytes are, such as "this machine (2 ranks)".
    """
    needed = rank_memory(cfg, world_size, rank)
    elsewhere = needed.offloaded if "GPU" in place else 0
    if needed.total - elsewhere <= available:
        return None
    layers = _most_layers(cfg, world_size, rank, available, gpu="GPU" in place)
    fits = f"model.num_layers={layers} or less fits" if layers else "use a smaller model or a smaller batch"
    text = (
        f"{cfg.model.num_params() / 1e6:,.1f} M parameters on {world_size} rank(s) need at least "
        f"{gigabytes(needed.total - elsewhere)} on rank {rank} (weights {gigabytes(needed.weights)}, gradients "
        f"{gigabytes(needed.gradients)}, optimizer {gigabytes(needed.optimizer)}, inputs of layers "
        f"{gigabytes(needed.activations)}, a step's tokens {gigabytes(needed.batches)}), and {place} has "
        f"{gigabytes(available)}; {fits}, or more ranks that share the weights (parallel.dp_shard)"
    )
    return Fault(text, "model", needed.total - elsewhere, layers or "a smaller model")


def too_large_beside(cfg: Config, world_size: int, ranks: int, available: int) -> Fault | None:
    """A fault if what `ranks` ranks with GPUs keep on the host cannot fit into its `available` bytes, else None."""
    needed = rank_memory(cfg, world_size)
    on_host = needed.host * ranks
    if not needed.offloaded or on_host <= available:
        return None
    allowed = f"a host with {gigabytes(on_host)}, or more machines that share the weights"
    text = (
        f"optim.offload={cfg.optim.offload} keeps {gigabytes(on_host)} of {ranks} rank(s) on the host, which has "
        f"{gigabytes(available)}"
    )
    return Fault(f"{text}; use {allowed}", "optim.offload", on_host, allowed)


def gigabytes(size: float) -> str:
    """Such as "62.1 MB" or "1,107.2 GB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _state(cfg: Config, weights: int, hidden: int) -> int:
    """Bytes of the moments of `weights` elements, including `hidden` in matrices inside the layers."""
    moments = {"adamw": 2 * weights, "muon": 2 * weights - hidden}
    return moments.get(cfg.optim.name, weights * (cfg.optim.momentum > 0)) * NUMBER[cfg.precision.moments]


def _step_counts(cfg: Config) -> int:
    """The weights for which AdamW counts its steps."""
    in_layer = {"adamw": 9, "muon": 5}
    return 3 + in_layer[cfg.optim.name] * cfg.model.num_layers if cfg.optim.name in in_layer else 0


def _most_layers(cfg: Config, world_size: int, rank: int, available: int, *, gpu: bool) -> int:
    """The most layers that fit; 0 if one does not."""

    def size(layers: int) -> int:
        needed = rank_memory(replace(cfg, model=replace(cfg.model, num_layers=layers)), world_size, rank)
        return needed.device if gpu else needed.total

    one, two = size(1), size(2)
    return 0 if one > available else 1 + (available - one) // (two - one)


def _shard(cfg: Config, world_size: int, rank: int) -> tuple[int, int]:
    """(ranks that share one copy of the dense weights, index of `rank` among them)."""
    shard = map_ranks(cfg.parallel, cfg.model, world_size).layout.shard
    return shard, rank % shard


def _share(rows: int, parts: int, index: int) -> int:
    """Rows of part `index` where torch cuts `rows` into `parts`: equal ones, then a shorter one, then none."""
    size = -(-rows // parts)
    return max(0, min(size, rows - index * size))


def _elements(cfg: Config, world_size: int, rank: int) -> tuple[int, int]:
    """(elements of all weights on `rank`, those in matrices inside the layers: attention's and experts')."""
    m, (parts, index) = cfg.model, _shard(cfg, world_size, rank)

    def share(rows: int) -> int:
        return _share(rows, parts, index)

    norms = 2 * m.head_dim if cfg.precision.linears == "bf16" else 2 * share(m.head_dim)  # of queries and keys
    qkv = m.head_dim * (m.num_heads + 2 * m.num_kv_heads)
    hidden = (
        share(qkv) * m.hidden_size
        + share(m.hidden_size) * m.num_heads * m.head_dim
        + 3 * m.num_experts * m.expert_width * m.hidden_size // parts  # whole experts, or equal parts of their width
    )
    # norms before attention and experts, router
    layer = 2 * share(m.hidden_size) + norms + share(m.num_experts) * m.hidden_size + hidden
    outside = 2 * share(m.vocab_size) * m.hidden_size + share(m.hidden_size)
    return outside + m.num_layers * layer, m.num_layers * hidden
