"""The map of stored tensors to parts of the parameters of a `Decoder`. No torch here.

Names of the text model follow a prefix; those of a Qwen3-MoE directory, of Intern-S1 and of Intern-S1-Pro are the
same after it. Each expert is three matrices, or all of a layer are two stacks: "fused" (gate_up_proj [E, H, 2I], the
serving engines' layout) or "upright" ([E, 2I, H], as transformers 5 holds them).

Legend: H hidden size · I expert width · E experts · V vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from trainer.config.model import ModelConfig
from trainer.storage.boxes import Box, full_box
from trainer.weights.towers.names import tower_of

# The spellings in use: the first is written where there are towers, PLAIN where there is text alone. A model that was
# saved without its head has no prefix.
MULTIMODAL, OLD, PLAIN, BARE = "model.language_model.", "language_model.model.", "model.", ""
Stack = Literal["fused", "upright"]
HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")
SCALE_SUFFIX = "_scale_inv"  # X.weight in FP8 has its scales beside it as X.weight_scale_inv
HEAD = HEAD_NAMES[0]
_TEXT_NAME = re.compile(
    "("
    + "|".join(map(re.escape, (MULTIMODAL, OLD, PLAIN)))
    + "|)"
    + r"(?:layers\.\d+\.(?:self_attn|mlp)\.|norm\.weight$)"
)


class Piece(NamedTuple):
    """A part of a parameter and where it is stored.

    Stored is `parameter[box]` without its dimensions `dropped`, each of length 1, and with the last two swapped if
    `transposed`; it starts at `origin` in the stored tensor.
    """

    name: str  # of the stored tensor, behind the prefix; HEAD and towers have none
    shape: tuple[int, ...]  # of the whole stored tensor
    parameter: str  # of a `Decoder` or `Multimodal`, as in its state_dict
    box: Box
    dropped: tuple[int, ...] = ()
    transposed: bool = False
    origin: tuple[int, ...] = ()
    matrix: bool = False  # one of those that FP8 checkpoints hold in FP8

    @property
    def kind(self) -> str:
        """The name with its numbers left out: tensors of one kind are stored in one dtype."""
        return re.sub(r"\d+", "*", self.name)

    def stored_box(self, part: Box) -> Box:
        """The place in the stored tensor of `part` of the parameter, which is inside `box`."""
        kept = [d for d in range(len(self.box)) if d not in self.dropped]
        ranges = [(part[d].start - self.box[d].start, part[d].stop - self.box[d].start) for d in kept]
        if self.transposed:
            ranges[-2:] = reversed(ranges[-2:])
        origin = self.origin or (0,) * len(ranges)
        return tuple(slice(start + o, stop + o) for (start, stop), o in zip(ranges, origin, strict=True))


def text_pieces(cfg: ModelConfig, stacks: Mapping[int, Stack] | None = None) -> Iterator[Piece]:
    """Every part of every parameter (and FoPE's tables), layer by layer. `stacks`: layers whose experts are stacks."""
    H, V, stacks = cfg.hidden_size, cfg.vocab_size, stacks or {}

    def entire(name: str, parameter: str, *shape: int, matrix: bool = False) -> Piece:
        return Piece(name, shape, parameter, full_box(shape), matrix=matrix)

    yield entire("embed_tokens.weight", "embed", V, H)
    if cfg.positions == "fope":
        kept = cfg.fope_frequencies()
        for table in ("cos_coef", "sin_coef"):
            yield entire(f"rotary_emb.{table}", f"rotary.{table}", cfg.num_kv_heads, kept, kept)
    q_rows, kv_rows = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    for number in range(cfg.num_layers):
        at = f"layers.{number}."
        yield entire(at + "input_layernorm.weight", at + "attention_norm", H)
        first = 0
        for letter, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            box = (slice(first, first + rows), slice(0, H))
            yield Piece(f"{at}self_attn.{letter}_proj.weight", (rows, H), at + "attention.qkv", box, matrix=True)
            first += rows
        yield entire(at + "self_attn.o_proj.weight", at + "attention.out", H, q_rows, matrix=True)
        yield entire(at + "self_attn.q_norm.weight", at + "attention.q_norm", cfg.head_dim)
        yield entire(at + "self_attn.k_norm.weight", at + "attention.k_norm", cfg.head_dim)
        yield entire(at + "post_attention_layernorm.weight", at + "moe_norm", H)
        yield entire(at + "mlp.gate.weight", at + "moe.router.weight", cfg.num_experts, H)
        if number in stacks:
            yield from _stacked_experts(at, cfg, stacks[number])
        else:
            yield from _separate_experts(at, cfg)
    yield entire("norm.weight", "norm", H)
    yield entire(HEAD, "lm_head", V, H)


def _separate_experts(at: str, cfg: ModelConfig) -> Iterator[Piece]:
    H, I = cfg.hidden_size, cfg.expert_width  # noqa: E741
    for e in range(cfg.num_experts):
        one, expert = f"{at}mlp.experts.{e}.", slice(e, e + 1)
        for half, kind in enumerate(("gate", "up")):
            box = (expert, slice(half, half + 1), slice(0, I), slice(0, H))
            yield Piece(f"{one}{kind}_proj.weight", (I, H), at + "moe.experts.w13", box, dropped=(0, 1), matrix=True)
        down = (expert, slice(0, H), slice(0, I))
        yield Piece(f"{one}down_proj.weight", (H, I), at + "moe.experts.w2", down, dropped=(0,), matrix=True)


def stack_shapes(cfg: ModelConfig, stack: Stack) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of gate_up_proj, the gates before the ups, and of down_proj."""
    E, H, I = cfg.num_experts, cfg.hidden_size, cfg.expert_width  # noqa: E741
    return ((E, H, 2 * I), (E, I, H)) if stack == "fused" else ((E, 2 * I, H), (E, H, I))


def _stacked_experts(at: str, cfg: ModelConfig, stack: Stack) -> Iterator[Piece]:
    E, H, I = cfg.num_experts, cfg.hidden_size, cfg.expert_width  # noqa: E741
    (gate_up, down), transposed = stack_shapes(cfg, stack), stack == "fused"
    for half in range(2):
        yield Piece(
            f"{at}mlp.experts.gate_up_proj", gate_up, at + "moe.experts.w13",
            (slice(0, E), slice(half, half + 1), slice(0, I), slice(0, H)),
            dropped=(1,), transposed=transposed, origin=(0, 0, half * I) if transposed else (0, half * I, 0),
            matrix=True,
        )  # fmt: skip
    box = full_box((E, H, I))
    yield Piece(f"{at}mlp.experts.down_proj", down, at + "moe.experts.w2", box, transposed=transposed, matrix=True)


def full_name(prefix: str, piece: Piece) -> str:
    """The name of the tensor that `piece` is in, as we write it."""
    return piece.name if piece.name == HEAD or tower_of(piece.name) else prefix + piece.name


def text_prefix(names: Iterable[str], absent: str = MULTIMODAL) -> str:
    """The prefix of a directory's text names: of the embedding's, or without one of most names of layers and norms;
    `absent` where there is none of these."""
    names = set(names)
    for prefix in (MULTIMODAL, OLD, PLAIN, BARE):
        if f"{prefix}embed_tokens.weight" in names:
            return prefix
    counts = Counter(match[1] for name in names if (match := _TEXT_NAME.match(name)))
    return max(counts, key=lambda prefix: (counts[prefix], prefix)) if counts else absent


def stacked_layers(shapes: Mapping[str, tuple[int, ...]], prefix: str, cfg: ModelConfig) -> dict[int, Stack]:
    """The layers whose experts are stacks. shapes: of the directory's tensors, by name.

    Upright where both shapes allow that and one does not allow "fused": at 2I = H only the other tensor shows it.
    """
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.mlp\.experts\.gate_up_proj")
    found: dict[int, Stack] = {}
    for match in filter(None, map(pattern.fullmatch, shapes)):
        here = (shapes[match[0]], shapes.get(match[0].replace("gate_up", "down")))
        upright, fused = (
            all(shape in (None, wanted) for shape, wanted in zip(here, stack_shapes(cfg, stack), strict=True))
            for stack in ("upright", "fused")
        )
        found[int(match[1])] = "upright" if upright and not fused else "fused"
    return found
