"""A frozen base in FP8 as a directory stores it: its bytes, and the same numbers as its dequantised twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.model.tiny import assert_close, build, model_config, next_tokens, random_ids, summed_loss
from tests.trainer.weights.directories import APART, FUSED, UPRIGHT, checkpoint
from trainer.config.errors import ConfigError
from trainer.config.keys import LoraConfig
from trainer.model.decoder import Decoder
from trainer.model.experts.choose import choose_backend
from trainer.model.frozen.hold import held, hold_base, place_scales
from trainer.model.lora.adapt import adapt, adapters, init_adapters
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import fill
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.scaled import check_stored_in_fp8, fill_scales

# Blocks of 128 divide the first; every width of the second ends inside a block.
EVEN = {"hidden_size": 256, "expert_width": 128, "head_dim": 64, "num_experts": 4, "num_layers": 1}
UNEVEN = {"hidden_size": 200, "expert_width": 132, "head_dim": 24, "num_experts": 4, "num_layers": 1}


def written(path: Any, sizes: dict[str, int], layout: str = APART, *, powers: bool = True) -> SourceModel:
    """A directory in FP8. powers: scales are powers of two, as Intern-S1-Pro's; otherwise any fp32."""
    made = checkpoint(path, build(model_config(**sizes)), layout=layout)
    made.quantise()
    for name, tensor in made.tensors.items():
        if name.endswith("_scale_inv") and not powers:
            tensor.mul_(1 + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(7)))
    made.write()
    return survey_directory(open_directory(path))


def adapted(
    source: SourceModel, base: str, target: str, *, linears: torch.dtype = torch.float32, experts: str = "fp32"
) -> Decoder:
    """The model of a directory with adapters whose B are not zero."""
    lora = LoraConfig(target=target, rank=4, base=base)
    with torch.device("meta"):
        model = Decoder(source.model, linears, make_backend=choose_backend("fp32", "grouped_mm"))
    adapt(model, lora)
    hold_base(model, lora, experts)
    place_scales(model)
    model.to_empty(device="cpu")
    fill(model, source)
    fill_scales(model, source, source.pieces)
    init_adapters(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapters(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def stepped(model: Decoder) -> dict[str, Tensor]:
    """The loss and the gradients of all adapters."""
    ids = random_ids(model.cfg, 2, 24).to(model.norm.device)
    loss, _ = summed_loss(model, ids, next_tokens(ids))
    loss.backward()
    found = {name: weight.grad for name, weight in adapters(model).items() if weight.grad is not None}
    assert found.keys() == adapters(model).keys()
    assert all(weight.grad is None for name, weight in model.named_parameters() if name not in found)
    return {"loss": loss.detach(), **found}


ARITHMETIC = {
    "fp32": (torch.float32, "fp32", 1e-6),
    "fp8_reference": (torch.float32, "fp8_reference", 1e-6),
    "bf16": (torch.bfloat16, "bf16", 1e-6),
    "fp8_reference in bf16": (torch.bfloat16, "fp8_reference", 1e-6),
}


@pytest.mark.parametrize("target", ["attention", "all"])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_it_equals_its_dequantised_twin(tmp_path, sizes, target):
    source = written(tmp_path / "fp8", sizes)
    for name, (linears, experts, bound) in ARITHMETIC.items():
        twin = stepped(adapted(source, "linears", target, linears=linears, experts=experts))
        assert_close(stepped(adapted(source, "fp8", target, linears=linears, experts=experts)), twin, bound)
        if name == "fp32":
            exact = twin
    # Rounding to FP8 is there: otherwise the reference would compare nothing.
    reference = stepped(adapted(source, "fp8", target, experts="fp8_reference"))
    assert abs(float(reference["loss"] / exact["loss"]) - 1) > 1e-5


def test_scales_that_are_not_powers_of_two(tmp_path):
    source = written(tmp_path / "fp8", UNEVEN, powers=False)
    for linears, experts in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        twin = stepped(adapted(source, "linears", "all", linears=linears, experts=experts))
        assert_close(stepped(adapted(source, "fp8", "all", linears=linears, experts=experts)), twin, 1e-6)


@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_codes_and_scales_are_the_stored_bytes(tmp_path, sizes):
    source = written(tmp_path / "fp8", sizes)
    stored, model = load_file(tmp_path / "fp8" / "model.safetensors"), adapted(source, "fp8", "all")
    at, experts = "model.language_model.layers.0.", model.blocks[0].moe.experts
    found = {matrix.name.rpartition(".")[2]: matrix for matrix in held(model)}
    heads = torch.cat([stored[f"{at}self_attn.{x}_proj.weight"].view(torch.uint8) for x in "qkv"])
    assert torch.equal(found["qkv"].codes, heads)
    scales = torch.cat([stored[f"{at}self_attn.{x}_proj.weight_scale_inv"] for x in "qkv"])
    assert torch.equal(found["qkv"].scaled.scales, scales)
    for expert in range(source.model.num_experts):
        one = f"{at}mlp.experts.{expert}."
        halves = [stored[f"{one}{x}_proj.weight"].view(torch.uint8) for x in ("gate", "up")]
        assert torch.equal(experts.w13[expert], torch.stack(halves))
        scales = torch.cat([stored[f"{one}{x}_proj.weight_scale_inv"] for x in ("gate", "up")])
        assert torch.equal(found["w13"].scaled.scales[expert], scales)
        assert torch.equal(experts.w2[expert], stored[one + "down_proj.weight"].view(torch.uint8))
        assert torch.equal(found["w2"].scaled.scales[expert], stored[one + "down_proj.weight_scale_inv"])
    # One byte an element, and no second copy in another dtype.
    elements = sum(matrix.codes.numel() for matrix in held(model))
    assert sum(matrix.codes.nbytes for matrix in held(model)) == elements
    assert model.num_params() - sum(weight.numel() for weight in adapters(model).values()) == source.model.num_params()


@pytest.mark.parametrize("layout", [FUSED, UPRIGHT])
def test_stacks_of_experts(tmp_path, layout):
    apart = stepped(adapted(written(tmp_path / "apart", EVEN), "fp8", "all"))
    assert_close(stepped(adapted(written(tmp_path / layout, EVEN, layout), "fp8", "all")), apart, 1e-6)


@pytest.mark.parametrize(
    ("sizes", "layout", "fp8"), [(EVEN, APART, False), (UNEVEN, UPRIGHT, True)], ids=["bf16", "shared blocks"]
)
def test_what_is_stored_in_another_way_is_refused(tmp_path, sizes, layout, fp8):
    made = checkpoint(tmp_path / "other", build(model_config(**sizes)), layout=layout)
    if fp8:
        made.quantise()
    made.write()
    with pytest.raises(ConfigError) as refused:
        check_stored_in_fp8(survey_directory(open_directory(tmp_path / "other")))
    fault = refused.value
    assert (fault.where, fault.value, fault.allowed) == ("lora.base", "fp8", ("linears",))
    check_stored_in_fp8(written(tmp_path / "fp8", EVEN))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN | {"expert_width": 144}], ids=["even", "uneven"])
def test_the_same_on_a_gpu(tmp_path, sizes):
    """In bf16 the grouped GEMM multiplies a few experts at a time."""
    source = written(tmp_path / "fp8", sizes)
    twin, scaled = (
        stepped(adapted(source, base, "all", linears=torch.bfloat16, experts="bf16").cuda())
        for base in ("linears", "fp8")
    )
    assert_close(scaled, twin, 1e-2)  # GEMMs of other shapes add in another order
