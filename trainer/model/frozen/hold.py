"""Put codes and scales in the place of a model's frozen matrices, those that checkpoints hold in FP8.

Legend: E experts · H hidden size · I expert width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from parallel.sharding.local import local_region
from trainer.config.keys import LoraConfig
from trainer.model.attention import Attention
from trainer.model.decoder import Decoder
from trainer.model.experts.module import Experts
from trainer.model.frozen.blocks import CODES, Blocks, whole
from trainer.model.frozen.blocks_gemm import PRECISION, BlockProducts
from trainer.model.frozen.experts import FrozenExperts, ReferenceProducts, ScaledProducts
from trainer.model.frozen.linear import ScaledLinear
from trainer.model.lora.experts import AdaptedExperts
from trainer.model.lora.gemm import FrozenProducts, PlainProducts
from trainer.model.lora.linear import AdaptedLinear


@dataclass(frozen=True)
class Held:
    """A matrix of codes on this rank.

    name: of its parameter in the model. codes: the parameter. scaled: has the scales. experts: the numbers of those
    whose scales are here; None for attention's, which are whole on every rank.
    """

    name: str
    codes: Tensor
    scaled: ScaledLinear | ScaledProducts
    experts: range | None


def hold_base(model: Decoder, cfg: LoraConfig, precision: str) -> None:
    """Choose how the frozen matrices of a plain model on the meta device are stored and multiplied, in place. After
    `adapt`; with target "none" nothing changes.

    precision: as `precision.experts`, whose roundings the experts' products have. Experts without adapters get a back
    end that makes no gradients of their weights.
    """
    if cfg.target == "none":
        return
    scaled, reference = cfg.base == "fp8", precision == "fp8_reference"
    for block in model.blocks:
        attention, experts = block.attention, block.moe.experts
        if scaled:
            _hold_attention(attention)
            w13, w2 = experts.w13.shape, experts.w2.shape
            kind = BlockProducts if precision == PRECISION else ScaledProducts
            products: tuple[FrozenProducts, FrozenProducts] = (
                kind(w13[0], whole([w13[2]] * 2, w13[3]), reference=reference, device="meta"),
                kind(w2[0], whole([w2[1]], w2[2]), reference=reference, device="meta"),
            )
            _to_codes(experts, "w13", "w2")
        elif reference:
            products = ReferenceProducts(), ReferenceProducts()
        else:
            products = PlainProducts(), PlainProducts()
        if isinstance(experts.backend, AdaptedExperts):
            experts.backend.up, experts.backend.down = products
        else:
            experts.backend = FrozenExperts(*products, ops=model.ops)


def _hold_attention(attention: Attention) -> None:
    d, (rows, hidden) = attention.head_dim, attention.qkv.shape
    kv = attention.kv_heads * d
    into = ScaledLinear(whole([rows - 2 * kv, kv, kv], hidden), device="meta")
    out_of = ScaledLinear(whole([attention.out.shape[0]], attention.out.shape[1]), device="meta")
    for name, linear in (("into", into), ("out_of", out_of)):
        adapted = getattr(attention, name)
        if isinstance(adapted, AdaptedLinear):
            adapted.base = linear
        else:
            setattr(attention, name, linear)
    _to_codes(attention, "qkv", "out")


def _to_codes(module: nn.Module, *names: str) -> None:
    for name in names:
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(weight.new_empty(weight.shape, dtype=CODES), requires_grad=False))


def place_scales(model: Decoder) -> None:
    """Keep the scales of this rank's experts alone. After the experts are placed on the meta device, and before FSDP
    shards their width: it gathers codes, and every rank has the scales of what it gathers."""
    for block in model.blocks:
        experts = block.moe.experts
        for scaled, weight in zip(_products(experts), (experts.w13, experts.w2), strict=True):
            if isinstance(scaled, ScaledProducts):
                numbers, *_, rows, columns = local_region(weight)
                inside = tuple(range(*rows.indices(part.stop)) for part in scaled.blocks.rows)
                blocks = Blocks(inside, range(*columns.indices(scaled.blocks.columns.stop)))
                scaled.place(range(numbers.start, numbers.stop), blocks)


def held(model: Decoder) -> Iterator[Held]:
    """The matrices of codes in a model, layer by layer."""
    for number, block in zip(model.layers, model.blocks, strict=True):
        attention, experts = block.attention, block.moe.experts
        for name, weight in (("into", attention.qkv), ("out_of", attention.out)):
            linear = getattr(attention, name)
            linear = linear.base if isinstance(linear, AdaptedLinear) else linear
            if isinstance(linear, ScaledLinear):
                parameter = "qkv" if name == "into" else "out"
                yield Held(f"layers.{number}.attention.{parameter}", weight, linear, None)
        for name, scaled in zip(("w13", "w2"), _products(experts), strict=True):
            if isinstance(scaled, ScaledProducts):
                yield Held(f"layers.{number}.moe.experts.{name}", getattr(experts, name), scaled, scaled.experts)


def spread_scales(model: Decoder) -> list[Tensor]:
    """The scales of the experts: every rank has those of its own."""
    return [matrix.scaled.scales for matrix in held(model) if matrix.experts is not None]


def _products(experts: Experts) -> tuple[FrozenProducts | None, FrozenProducts | None]:
    backend = experts.backend
    return (backend.up, backend.down) if isinstance(backend, AdaptedExperts | FrozenExperts) else (None, None)
