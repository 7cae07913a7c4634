"""Reading Hugging Face directories: layouts, spellings, dtypes, and what is said of a directory that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.model.tiny import assert_close, build, model_config, random_ids
from trainer.checkpoint.huggingface.files import HuggingFaceError
from trainer.checkpoint.huggingface.read import from_huggingface
from trainer.model import Decoder

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FUSED, APART = "fused", "apart"


@pytest.fixture(scope="module")
def source() -> Decoder:
    return build(model_config())


@dataclass
class Checkpoint:
    """Writes a directory; tests change `config` and `tensors` before or the files after."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def write(self, shards: int = 1) -> Path:
        (self.directory / "config.json").write_text(json.dumps(self.config))
        names = sorted(self.tensors)
        files = {}
        for number in range(shards):
            file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {name: self.tensors[name].detach().contiguous().clone() for name in names[number::shards]}
            save_file(part, self.directory / file)
            files |= dict.fromkeys(part, file)
        if shards > 1:
            (self.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        return self.directory


def checkpoint(directory: Path, model: Decoder, *, prefix: str = "model.language_model.", layout: str = APART) -> Any:
    cfg = model.cfg
    text = {
        "vocab_size": cfg.vocab_size, "hidden_size": cfg.hidden_size, "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads, "num_key_value_heads": cfg.num_kv_heads, "head_dim": cfg.head_dim,
        "num_experts": cfg.num_experts, "num_experts_per_tok": cfg.experts_per_token,
        "moe_intermediate_size": cfg.expert_width, "router_n_groups": cfg.router_groups,
        "rms_norm_eps": cfg.norm_eps, "max_position_embeddings": cfg.max_position, "rope_theta": cfg.rope_theta,
        "rope_scaling": {"rope_type": "default", "fope_init_factor": 0.5, "num_inv_freq": None},
        "norm_topk_prob": True, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    tensors = {prefix + "embed_tokens.weight": model.embed, prefix + "norm.weight": model.norm}
    tensors["lm_head.weight"] = model.lm_head
    tensors |= {f"{prefix}rotary_emb.{name}": buffer for name, buffer in model.rotary.named_buffers()}
    d = cfg.head_dim
    for number, block in enumerate(model.layers):
        at, attention, experts = f"{prefix}layers.{number}.", block.attention, block.moe.experts
        q, k, v = attention.qkv.split([cfg.num_heads * d, cfg.num_kv_heads * d, cfg.num_kv_heads * d])
        tensors |= {
            at + "input_layernorm.weight": block.attention_norm, at + "post_attention_layernorm.weight": block.moe_norm,
            at + "self_attn.q_proj.weight": q, at + "self_attn.k_proj.weight": k, at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": attention.out, at + "mlp.gate.weight": block.moe.router.weight,
            at + "self_attn.q_norm.weight": attention.q_norm, at + "self_attn.k_norm.weight": attention.k_norm,
        }  # fmt: skip
        if layout == FUSED:
            gate_up_EHI2 = torch.cat([experts.w13[:, 0], experts.w13[:, 1]], dim=1).transpose(1, 2)
            tensors[at + "mlp.experts.gate_up_proj"] = gate_up_EHI2
            tensors[at + "mlp.experts.down_proj"] = experts.w2.transpose(1, 2)
            continue
        for expert in range(cfg.num_experts):
            one = f"{at}mlp.experts.{expert}."
            tensors[one + "gate_proj.weight"], tensors[one + "up_proj.weight"] = experts.w13[expert]
            tensors[one + "down_proj.weight"] = experts.w2[expert]
    return Checkpoint(directory, {"text_config": text, "vision_config": {}}, tensors)


def assert_same(model: Decoder, source: Decoder) -> None:
    assert model.cfg == model_config(init_std=model.cfg.init_std)
    assert_close(model.state_dict(), source.state_dict(), 0.0)


@pytest.mark.parametrize("layout", [APART, FUSED])
@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_layouts_and_prefixes(tmp_path, source, prefix, layout):
    written = checkpoint(tmp_path, source, prefix=prefix, layout=layout)
    written.tensors["model.visual.patch_embed.weight"] = torch.zeros(3)  # other modalities are passed over
    assert_same(from_huggingface(written.write()), source)


@pytest.mark.parametrize("layout", [APART, FUSED])
def test_a_sharded_directory(tmp_path, source, layout):
    directory = checkpoint(tmp_path, source, layout=layout).write(shards=3)
    save_file({"stray": torch.zeros(1)}, directory / "model-stray.safetensors")  # not of the index: not opened
    (directory / "model-stray.safetensors").write_bytes(b"no safetensors")
    assert_same(from_huggingface(directory), source)


def test_other_spellings(tmp_path, source):
    """A text-only config.json, num_local_experts, theta in rope_parameters, the head under the old prefix."""
    written = checkpoint(tmp_path, source, prefix="language_model.model.")
    text = written.config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    written.config = text
    written.tensors["language_model.lm_head.weight"] = written.tensors.pop("lm_head.weight")
    assert_same(from_huggingface(str(written.write())), source)


def test_head_dim_defaults_to_the_hidden_sizes_share(tmp_path):
    source = build(model_config(head_dim=4, positions="rope"))  # 24 / 6 heads
    written = checkpoint(tmp_path, source)
    del written.config["text_config"]["head_dim"]
    written.config["text_config"]["rope_scaling"] = None
    model = from_huggingface(written.write())
    assert (model.cfg.head_dim, model.cfg.positions) == (4, "rope")
    assert_close(model.state_dict(), source.state_dict(), 0.0)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtype_is_of_parameters_and_computation(tmp_path, source, dtype, wide):
    model = from_huggingface(checkpoint(tmp_path, source).write(), dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {b.dtype for b in model.buffers()} == {wide}
    expected = {name: p.detach().to(dtype) for name, p in source.named_parameters()}
    assert_close(dict(model.named_parameters()), expected, 0.0)
    ids = random_ids(model.cfg, 1, 12)
    hidden, _ = model.features(ids)
    assert hidden.dtype == dtype
    assert model(ids).dtype == wide


def test_a_bf16_checkpoint_is_read_exactly(tmp_path, source):
    written = checkpoint(tmp_path, source)
    written.tensors = {name: tensor.detach().bfloat16() for name, tensor in written.tensors.items()}
    model = from_huggingface(written.write())
    expected = {name: p.detach().bfloat16().float() for name, p in source.named_parameters()}
    assert_close(dict(model.named_parameters()), expected, 0.0)


def drop(key: str) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].pop(key)


def put(key: str, value: Any) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].update({key: value})


REFUSED_CONFIGS = {
    "no vocab_size": drop("vocab_size"),
    "no num_experts or num_local_experts": drop("num_experts"),
    "no moe_intermediate_size": drop("moe_intermediate_size"),
    "no num_experts_per_tok": drop("num_experts_per_tok"),
    "no rms_norm_eps": drop("rms_norm_eps"),
    "no rope_theta": drop("rope_theta"),
    "tie_word_embeddings=True": put("tie_word_embeddings", True),
    "attention_bias=True": put("attention_bias", True),
    "norm_topk_prob=False": put("norm_topk_prob", False),
    "mlp_only_layers": put("mlp_only_layers", [0]),
    "decoder_sparse_step": put("decoder_sparse_step", 2),
    "hidden_act=gelu": put("hidden_act", "gelu"),
    "use_sliding_window=True": put("use_sliding_window", True),
    "rope_type=yarn": put("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    "rope_type=linear": put("rope_scaling", {"type": "linear", "factor": 4.0}),
    "num_inv_freq=2": put("rope_scaling", {"fope_init_factor": 0.5, "num_inv_freq": 2}),
}


@pytest.mark.parametrize("message", REFUSED_CONFIGS)
def test_a_configuration_that_is_not_this_model_is_refused(tmp_path, source, message):
    written = checkpoint(tmp_path, source)
    REFUSED_CONFIGS[message](written)
    with pytest.raises(HuggingFaceError, match=f"config.json.*{message}"):
        from_huggingface(written.write())


@pytest.mark.parametrize("name", ["layers.1.self_attn.k_norm.weight", "layers.0.mlp.experts.7.up_proj.weight",
                                  "rotary_emb.sin_coef"])  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path, source, name):
    written = checkpoint(tmp_path, source)
    del written.tensors["model.language_model." + name]
    with pytest.raises(HuggingFaceError, match=f"no tensor model.language_model.{name}"):
        from_huggingface(written.write())


@pytest.mark.parametrize("layout", [APART, FUSED])
def test_a_wrong_shape_is_named(tmp_path, source, layout):
    written = checkpoint(tmp_path, source, layout=layout)
    name = next(name for name in written.tensors if "layers.1" in name and "experts." in name and "down" in name)
    written.tensors[name] = written.tensors[name].transpose(-1, -2)
    with pytest.raises(HuggingFaceError, match=rf"{name}: the checkpoint has shape \[.*20, 24\]|{name}: .*24, 20\]"):
        from_huggingface(written.write())


def test_quantised_weights_are_refused(tmp_path, source):
    """Without their scales the values of an FP8 checkpoint mean nothing."""
    written = checkpoint(tmp_path, source)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    written.tensors[name] = written.tensors[name].detach().to(torch.float8_e4m3fn)
    with pytest.raises(HuggingFaceError, match=f"{name}.*float8_e4m3fn"):
        from_huggingface(written.write())


def test_missing_and_damaged_files_are_named(tmp_path, source):
    with pytest.raises(HuggingFaceError, match=rf"{tmp_path}: no config.json"):
        from_huggingface(tmp_path)
    directory = checkpoint(tmp_path, source).write(shards=3)
    shard = directory / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b""):
        shard.write_bytes(damaged)
        with pytest.raises(HuggingFaceError, match=shard.name):
            from_huggingface(directory)
    shard.unlink()
    with pytest.raises(HuggingFaceError, match=shard.name):
        from_huggingface(directory)
    for file in directory.glob("model*"):
        file.unlink()
    with pytest.raises(HuggingFaceError, match=r"no model.safetensors"):
        from_huggingface(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_json_is_named(tmp_path, source, file, text):
    directory = checkpoint(tmp_path, source).write(shards=2)
    (directory / file).write_text(text)
    with pytest.raises(HuggingFaceError, match=file):
        from_huggingface(directory)


def test_the_checkpoint_stays_as_it_was(tmp_path, source):
    """The parameters are copies: training what was read must not write through to the files."""
    directory = checkpoint(tmp_path, source).write()
    model = from_huggingface(directory)
    with torch.no_grad():
        model.embed.zero_()
    kept = load_file(directory / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert torch.equal(kept, source.embed)
