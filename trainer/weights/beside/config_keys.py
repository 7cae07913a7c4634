"""Keys of config.json that describe nothing of Octavo's model, but without which other programs refuse it.

Source: `Qwen3MoeConfig` of transformers, which writes all of these, and the published config.json files of Qwen3-MoE.
mlx-lm asks for `intermediate_size`, mistral.rs for `max_window_layers` too.
"""

from __future__ import annotations

from typing import Any

from trainer.config.model import ModelConfig

FIRST_TRANSFORMERS = "4.51.0"  # that has Qwen3-MoE, as its published checkpoints say


def qwen3_moe_keys(model: ModelConfig) -> dict[str, Any]:
    """Key -> value; no key changes what the model computes."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "decoder_sparse_step": 1,
        "eos_token_id": None,
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        # Width of dense layers, and there are none: that of one token's experts together, as in published models.
        "intermediate_size": model.experts_per_token * model.expert_width,
        "max_window_layers": model.num_layers,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "num_experts": model.num_experts,
        "num_local_experts": model.num_experts,  # the same in transformers 5
        "output_router_logits": False,
        "pad_token_id": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
    }
