"""Hugging Face directories written by other means than ours, for tests to read and to damage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.decoder import Decoder

FUSED, UPRIGHT, APART = "fused", "upright", "apart"


@dataclass
class Checkpoint:
    """Writes a directory; tests change `config` and `tensors` before or the files after."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def write(self, shards: int = 1) -> Path:
        self.directory.mkdir(exist_ok=True)
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

    def quantise(self) -> None:
        """Attention's and experts' matrices as e4m3, each 128 x 128 block scaled by a power of two: block by block, in
        the plainest way."""
        for name in [name for name in self.tensors if "_proj" in name]:
            weight = self.tensors.pop(name).detach()
            rows, columns = ((size + 127) // 128 for size in weight.shape[-2:])
            scales = torch.empty(*weight.shape[:-2], rows, columns)
            codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
            for row in range(rows):
                for column in range(columns):
                    block = (..., slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
                    largest = weight[block].abs().amax((-1, -2), keepdim=True)
                    scale = 2.0 ** torch.floor(torch.log2(448 / largest))
                    codes[block] = (weight[block] * scale).to(torch.float8_e4m3fn)
                    scales[..., row, column] = 1 / scale[..., 0, 0]
            self.tensors[name], self.tensors[name + "_scale_inv"] = codes, scales


def checkpoint(
    directory: Path, model: Decoder, *, prefix: str = "model.language_model.", layout: str = APART
) -> Checkpoint:
    """`model` as a multimodal directory without towers."""
    cfg = model.cfg
    text = {
        "model_type": "interns1_pro_text",
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
    for number, block in enumerate(model.blocks):
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
        if layout == UPRIGHT:
            tensors[at + "mlp.experts.gate_up_proj"] = torch.cat([experts.w13[:, 0], experts.w13[:, 1]], dim=1)
            tensors[at + "mlp.experts.down_proj"] = experts.w2
            continue
        for expert in range(cfg.num_experts):
            one = f"{at}mlp.experts.{expert}."
            tensors[one + "gate_proj.weight"], tensors[one + "up_proj.weight"] = experts.w13[expert]
            tensors[one + "down_proj.weight"] = experts.w2[expert]
    return Checkpoint(directory, {"model_type": "interns1_pro", "text_config": text, "vision_config": {}}, tensors)
