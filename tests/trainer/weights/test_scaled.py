"""A frozen base in FP8 as a directory stores it: its bytes, and the same numbers as its dequantised twin."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.model.tiny import assert_close, build, model_config
from tests.trainer.weights.directories import APART, FUSED, UPRIGHT, checkpoint
from tests.trainer.weights.scaled import EVEN, UNEVEN, adapted, stepped, written
from trainer.config.errors import ConfigError
from trainer.model.frozen.hold import held
from trainer.model.lora.adapt import adapters
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import survey_directory
from trainer.weights.scaled import check_stored_in_fp8

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
def test_codes_and_scales_are_the_stored_bytes_after_a_step_too(tmp_path, sizes):
    source = written(tmp_path / "fp8", sizes)
    stored, model = load_file(tmp_path / "fp8" / "model.safetensors"), adapted(source, "fp8", "all")
    stepped(model)
    torch.optim.SGD([weight for weight in model.parameters() if weight.grad is not None], lr=0.1).step()
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
