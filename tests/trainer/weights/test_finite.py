"""Weights that are NaN or infinite are refused where they are read; large ones are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.model.tiny import build, model_config
from tests.trainer.weights.directories import APART, UPRIGHT, Checkpoint, checkpoint
from trainer.model.decoder import Decoder
from trainer.storage.boxes import StoredTensor
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_read import from_huggingface, require_finite
from trainer.weights.hf_survey import survey_directory
from trainer.weights.upcycle.placement import Expansion
from trainer.weights.upcycle.stream import plan_upcycle

PREFIX = "model.language_model."
EXPERT = PREFIX + "layers.0.mlp.experts.3.down_proj.weight"
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def source() -> Decoder:
    return build(model_config(router_groups=1, positions="rope", num_experts=8))


def put(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[Checkpoint], str]:
    """Set the last number of a tensor, which gets this dtype."""

    def apply(written: Checkpoint) -> str:
        changed = written.tensors[name].detach().to(dtype, copy=True)
        changed.view(-1)[-1] = value
        written.tensors[name] = changed
        return name

    return apply


def nan_code(written: Checkpoint) -> str:
    written.quantise()
    written.tensors[EXPERT].view(torch.uint8).view(-1)[-1] = 0xFF
    return EXPERT


def nan_scale(written: Checkpoint) -> str:
    written.quantise()
    written.tensors[EXPERT + "_scale_inv"][-1, -1] = NAN
    return EXPERT


DAMAGES: dict[str, Callable[[Checkpoint], str]] = {
    "an expert": put(EXPERT, NAN),
    "an expert, infinite": put(EXPERT, -INFINITY),
    "an expert in bf16": put(EXPERT, INFINITY, torch.bfloat16),
    "an expert in fp16": put(EXPERT, NAN, torch.float16),
    "an expert in fp64, too large for fp32": put(EXPERT, 1e300, torch.float64),
    "a code of FP8": nan_code,
    "a scale of FP8": nan_scale,
    "a row of the embedding": put(PREFIX + "embed_tokens.weight", NAN),
    "a norm": put(PREFIX + "layers.1.input_layernorm.weight", NAN),
    "a row of the router": put(PREFIX + "layers.1.mlp.gate.weight", NAN),
    "the head": put("lm_head.weight", INFINITY),
}


def written(directory: Path, model: Decoder, layout: str = APART) -> Checkpoint:
    made = checkpoint(directory, model, layout=layout)
    made.config["text_config"] |= {"model_type": "qwen3_moe", "rope_scaling": None}
    return made


def assert_named(error: HuggingFaceError, directory: Path, name: str) -> None:
    assert (error.where, error.allowed) == (f"{directory}/model.safetensors", "finite numbers")
    assert error.value in (name, name + "_scale_inv")


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_tensor_is_named_in_reading(tmp_path, source, damage):
    made = written(tmp_path, source)
    name = DAMAGES[damage](made)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(made.write())
    assert_named(refused.value, tmp_path, name)


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if "fp64" not in damage])  # stays fp64 there
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_the_tensor_is_named_in_upcycling(tmp_path, source, damage, noise):
    made = written(tmp_path, source)
    name = DAMAGES[damage](made)
    opened = survey_directory(open_directory(made.write()))
    planned = plan_upcycle(opened, Expansion(factor=2, groups=4, noise=noise))
    with pytest.raises(HuggingFaceError) as refused:
        sum(tensor.numel() for bundle in planned.bundles for tensor in bundle.make())
    assert_named(refused.value, tmp_path, name)


def test_a_stack_of_experts_is_named(tmp_path, source):
    made = written(tmp_path, source, UPRIGHT)
    name = put(PREFIX + "layers.1.mlp.experts.gate_up_proj", NAN)(made)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(made.write())
    assert_named(refused.value, tmp_path, name)


@pytest.mark.parametrize(
    "values",
    [
        torch.full((64,), 3e38),  # their sum is not
        torch.full((64,), 3e38, dtype=torch.bfloat16),
        torch.full((64,), 6e4, dtype=torch.float16),
        torch.full((64,), 448.0).to(torch.float8_e4m3fn),
        torch.zeros(0),
        torch.tensor(-1e308, dtype=torch.float64),
    ],
    ids=lambda values: f"{values.dtype} {values.numel()}",
)
def test_what_is_finite_passes(values: Tensor):
    require_finite(values, StoredTensor("large", "F32", tuple(values.shape), Path("file"), 0, values.nbytes))
