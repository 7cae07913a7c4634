"""FP8 read and written again: bytes of what was not trained, and widths that are not multiples of 128."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.model.tiny import logits
from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.exports import ONE, assert_bitwise, config, loaded, save_at_once
from trainer.run.process import train
from trainer.weights.export import export
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import from_huggingface
from trainer.weights.hf_survey import survey_directory
from trainer.weights.hf_write import write_directory
from trainer.weights.upcycle.placement import Expansion
from trainer.weights.upcycle.stream import plan_upcycle

SIZES = {
    "router_groups": 1, "positions": "rope", "hidden_size": 128, "num_layers": 1, "num_kv_heads": 4, "head_dim": 32,
}  # fmt: skip
SCALES = {"fp32, any": torch.float32, "fp32, powers of two": torch.float32, "bf16": torch.bfloat16,
          "e8m0": torch.float8_e8m0fnu}  # fmt: skip
KINDS = [pytest.param(kind, marks=[] if kind in ("fp32, any", "e8m0") else pytest.mark.slow) for kind in SCALES]


def in_fp8(run: Path, directory: Path, kind: str) -> Path:
    """An export whose scales another program chose: larger than ours, of another dtype or not powers of two."""
    export(run, directory, dtype="fp8")
    (file,) = directory.glob("model*.safetensors")
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        values = (
            tensors[weight].float()
            * tensors[name]
            .repeat_interleave(128, 0)
            .repeat_interleave(128, 1)[: tensors[weight].shape[0], : tensors[weight].shape[1]]
        )
        factor = 2.9 if kind == "fp32, any" else 4.0
        scale = tensors[name] * factor
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: values.shape[0], : values.shape[1]]
        tensors[weight], tensors[name] = (values / spread).to(torch.float8_e4m3fn), scale.to(SCALES[kind])
    save_file(tensors, file, metadata={"format": "pt"})
    text = json.loads((directory / "config.json").read_text())
    if kind == "fp32, any":
        del text["quantization_config"]["scale_fmt"]
    (directory / "config.json").write_text(json.dumps(text))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny_config(directory, steps=1, model={**SIZES, "expert_width": 96})) == 0
    return directory


def bytes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    return {name: (tensor.dtype, tensor.view(torch.uint8).numpy().tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_trained_comes_out_byte_for_byte(run, tmp_path, kind):
    source = in_fp8(run, tmp_path / "source", kind)
    save_at_once(source, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "out")
    assert bytes_of(loaded(tmp_path / "out")) == bytes_of(loaded(source))
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "out"))
    assert after["quantization_config"] == before["quantization_config"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_upcycle_without_noise_copies_codes_and_scales(run, tmp_path, kind):
    source = in_fp8(run, tmp_path / "source", kind)
    surveyed = survey_directory(open_directory(source))
    for number, noise in enumerate((0.0, 1e-2)):
        made = plan_upcycle(surveyed, Expansion(factor=2, groups=4, noise=noise))
        write_directory(tmp_path / f"out{number}", made.bundles, made.config)
    exact, noisy = (bytes_of(loaded(tmp_path / f"out{number}")) for number in range(2))
    ours = bytes_of(loaded(source))
    attention = [name for name in ours if "self_attn" in name and "_proj" in name]
    assert len(attention) == 8
    for name in attention:
        found = name.replace("model.", "model.language_model.", 1)
        assert exact[found] == noisy[found] == ours[name]
    experts = {values for name, values in ours.items() if ".mlp.experts." in name}
    assert {values for name, values in exact.items() if ".mlp.experts." in name} == experts
    assert {values[0] for name, values in noisy.items() if name.endswith("_scale_inv")} == {SCALES[kind]}
    from_huggingface(tmp_path / "out1")


def test_trained_tensors_are_quantised_anew(run, tmp_path):
    source = in_fp8(run, tmp_path / "source", "fp32, powers of two")
    assert train(config(source, tmp_path / "run", lr=0.05)) == 0
    export(tmp_path / "run", tmp_path / "out")
    before, after = bytes_of(loaded(source)), bytes_of(loaded(tmp_path / "out"))
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before if name.endswith("_proj.weight")) > 20


def test_padded_experts_compute_the_same_and_transformers_reads_them(run, tmp_path, monkeypatch):
    """Without padding it divides a width of 192 by its two scales, and reads other weights."""
    from transformers import FineGrainedFP8Config, Qwen3MoeForCausalLM
    from transformers.quantizers import quantizer_finegrained_fp8

    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda *version: True)
    assert train(tiny_config(tmp_path / "first", steps=1, model={**SIZES, "expert_width": 192, "init_std": 0.1})) == 0
    export(tmp_path / "first", tmp_path / "source", dtype="fp32")
    (file,) = (tmp_path / "source").glob("model*.safetensors")
    tensors = load_file(file)
    for name in [name for name in tensors if "gate_proj" in name]:
        tensors[name][128:] *= 16  # another scale than that of the rows before
    save_file(tensors, file, metadata={"format": "pt"})
    save_at_once(tmp_path / "source", tmp_path / "run", ONE)
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(2))
    found = {}
    for pad in (False, True):
        target = tmp_path / f"out-{pad}"
        done = export(tmp_path / "run", target, dtype="fp8", pad=pad)
        assert [warning.split()[0] for warning in done.warnings] == ["model.expert_width=192"] * (not pad)
        how: Any = {"quantization_config": FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128))}
        theirs = Qwen3MoeForCausalLM.from_pretrained(target, **how).float()(input_ids=ids).logits
        found[pad] = logits(from_huggingface(target), ids)
        agree = (theirs - found[pad]).abs().max() <= 1e-4
        assert agree == pad
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "out-True" / "config.json").read_text())["moe_intermediate_size"] == 256
    weights = loaded(tmp_path / "out-True")
    assert not weights["model.layers.0.mlp.experts.0.gate_proj.weight"][192:].float().any()
    assert not weights["model.layers.0.mlp.experts.0.down_proj.weight"][:, 192:].float().any()


@pytest.mark.parametrize("width", ["hidden_size", "head_dim", "expert_width"])
def test_every_width_that_is_read_wrong_is_named(run, tmp_path, width):
    size = {"hidden_size": 192, "head_dim": 8, "expert_width": 96}[width]
    sizes: dict[str, Any] = {**SIZES, "expert_width": 128, width: size}
    assert train(tiny_config(tmp_path / "run", steps=1, model=sizes)) == 0
    done = export(tmp_path / "run", tmp_path / "out", dtype="fp8")
    named = {warning.split("=")[0].removeprefix("model.") for warning in done.warnings}
    expected = {"num_heads x head_dim", "num_kv_heads x head_dim"} if width == "head_dim" else {width}
    assert named == expected
    assert export(tmp_path / "run", tmp_path / "bf16").warnings == []


def test_padding_without_fp8_is_refused(run, tmp_path):
    with pytest.raises(Exception, match="--pad") as refused:
        export(run, tmp_path / "out", pad=True)
    assert (refused.value.where, refused.value.allowed) == ("--pad", "--dtype fp8")
    assert not (tmp_path / "out").exists()


def test_equal_values_in_place_of_equal_bytes_where_the_layout_differs(run, tmp_path):
    """A dtype of scales that does not hold every power of two is widened; the values stay."""
    source = in_fp8(run, tmp_path / "source", "fp32, powers of two")
    (file,) = source.glob("model*.safetensors")
    tensors = {n: t.half() if n.endswith("_scale_inv") else t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    save_at_once(source, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "out")
    assert {t.dtype for n, t in loaded(tmp_path / "out").items() if n.endswith("_scale_inv")} == {torch.float32}
    assert_bitwise(from_huggingface(tmp_path / "out").state_dict(), from_huggingface(source).state_dict())
