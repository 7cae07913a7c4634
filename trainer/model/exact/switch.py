"""Switch a model to exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from parallel.context.ulysses import UlyssesAttention
from trainer.model.decoder import Decoder
from trainer.model.exact.attention import ExactAttention
from trainer.model.exact.compiled import compiles
from trainer.model.exact.experts import ExactExperts
from trainer.model.exact.ops import EXACT
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.multimodal import Multimodal
from trainer.model.towers.run_images import EachImage, run_each_signal


def make_exact(model: Decoder) -> Decoder:
    """Replace, in place, the objects that compute by those of exact mode; experts in `fp8_reference` keep its rounding,
    others compute in the dtype of the activations. Towers run on one image or signal at a time. Parameters and names
    stay. Returns the model.

    Ranks that share a sequence (ulysses) each compute the attention of some heads over the whole of it, in the same
    products. Raises ValueError where they share it in another way, and for adapters, which are merged before."""
    alone = ExactAttention()
    model.ops = model.rotary.ops = EXACT
    for block in model.blocks:
        core = block.attention.core
        if core.ranks > 1 and not isinstance(core, UlyssesAttention):
            raise ValueError("exact arithmetic needs all keys of a head on one rank")
        block.attention.core = UlyssesAttention(core.group, alone) if isinstance(core, UlyssesAttention) else alone
        block.attention.ops = block.moe.router.ops = EXACT
        experts = block.moe.experts
        if isinstance(experts.backend, nn.Module) or isinstance(block.attention.into, nn.Module):
            raise ValueError("exact arithmetic needs the adapters merged; trainer.engine.load reads a run that way")
        of = experts.backend
        experts.backend = Fp8Reference(EXACT, of.rounding) if isinstance(of, Fp8Reference) else ExactExperts(EXACT)
    if isinstance(model, Multimodal):
        model.run_images, model.run_signals = EachImage(model.run_images), run_each_signal
    return model


def store_for_few_rows(model: Decoder) -> Decoder:
    """Store matrices column by column, in place: products of few rows, which are most of what generation does, then
    take a third less time. Shapes and values stay, and bits of products. Returns the model, whose weights must not be
    sharded or trained."""
    for weight in _matrices(model):
        weight.data = _by_columns(weight)
    return model


@contextmanager
def compiled_for_few_rows(model: Decoder) -> Iterator[None]:
    """Compute with compiled products, outside autograd and in any mode, from copies of the matrices that are stored
    column by column: a few rows then take a third of the time.

    For models in fp32 on a CPU; other models, those with adapters, and quantised experts stay as they are. The copies
    take as much memory as the matrices."""
    plain = all(not isinstance(of, nn.Module) for block in model.blocks for of in (
        block.attention.into, block.attention.out_of, block.moe.experts.backend))  # fmt: skip
    if not plain or not all(compiles(weight.data) for weight in _matrices(model)):
        yield
        return
    replaced: list[tuple[object, str, object]] = []

    def replace(owner: object, name: str, value: object) -> None:
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        replace(model, "ops", EXACT)
        for block in model.blocks:
            replace(block.attention, "ops", EXACT)
            replace(block.moe.router, "ops", EXACT)
            if not isinstance(block.moe.experts.backend, Fp8Reference):
                replace(block.moe.experts, "backend", ExactExperts(EXACT))
        for weight in _matrices(model):
            replace(weight, "data", _by_columns(weight))
        yield
    finally:
        for owner, name, value in reversed(replaced):
            setattr(owner, name, value)


def _matrices(model: Decoder) -> list[nn.Parameter]:
    weights = [] if model.lm_head is None else [model.lm_head]
    for block in model.blocks:
        attention, moe = block.attention, block.moe
        weights += [attention.qkv, attention.out, moe.router.weight, moe.experts.w13, moe.experts.w2]
    return weights


def _by_columns(weight: Tensor) -> Tensor:
    """The same values in another order in memory."""
    matrices = weight.data.flatten(1, -2) if weight.ndim > 2 else weight.data  # [(E,) rows, columns]
    return matrices.mT.contiguous().mT.view(weight.shape)
