"""Every key of a config.json: it describes the model, is neutral at one value only, irrelevant, or unknown. No torch.

Sources: the configuration classes of transformers 4.57 and 5.23, and the published config.json of the two models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Model types whose text model is this one -> the values that absent keys have, which transformers' own configuration
# gives. Published files of the second type have every key, and no installed code defines others.
DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "norm_topk_prob": False, "tie_word_embeddings": False, "attention_bias": False, "use_sliding_window": False,
        "decoder_sparse_step": 1,
    },
    "interns1_pro_text": {"norm_topk_prob": False},
}  # fmt: skip
GROUPED = "interns1_pro_text"  # the only type whose published code has router groups and FoPE
TEXT_MODELS = tuple(DEFAULTS)
# Models around a text_config whose text model computes nothing but that.
# interns1_1 is another name of interns1_pro.
AROUND_TEXT = ("interns1", "interns1_pro", "interns1_1", "internvl")

# Keys that describe this model, and others that are read.
DESCRIBING = frozenset({
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_experts", "num_local_experts", "num_experts_per_tok", "router_n_groups", "moe_intermediate_size",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
})  # fmt: skip
READ = DESCRIBING | {
    "model_type", "text_config", "max_position_embeddings", "initializer_range", "router_aux_loss_coef", "dtype",
    "torch_dtype", "quantization_config", "vision_config", "ts_config", "downsample_ratio",
}  # fmt: skip
READ_ROPE = frozenset({
    "rope_theta", "rope_type", "type", "fope_init_factor", "fope_pad_sin", "fope_sep_head", "num_inv_freq",
})  # fmt: skip

# Keys by which the same weights become another function, and the values at which they do not. An absent key and null
# are neutral too, unless the model type's default is not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # what is stored, and where the weights and this description are to be found
    "tie_word_embeddings": (False,), "per_layer_config": ({},), "pruned_heads": ({},), "transformers_weights": (),
    "configuration_files": ([],), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    # attention
    "attention_bias": (False,), "qkv_bias": (False,), "attention_out_bias": (False,), "is_causal": (True,),
    "use_bidirectional_attention": (False,), "use_sliding_window": (False,), "attention_chunk_size": (),
    "sliding_window_pattern": (), "attn_logit_softcapping": (), "clip_qkv": (), "qk_layernorm": (True,),
    "use_qk_norm": (True,), "use_qk_layernorm": (True,), "qk_norm": (True,), "attn_temperature_tuning": (False,),
    "attn_output_gate": (False,), "attention_sink": (False,), "use_attention_sinks": (False,), "kv_lora_rank": (),
    "q_lora_rank": (), "alibi": (False,), "position_embedding_type": ("rope",),
    # positions
    "partial_rotary_factor": (1,), "rotary_pct": (1,), "no_rope_layers": ([],),
    "no_rope_layer_interval": (), "rope_interleave": (False,), "rope_interleaved": (False,), "use_rope": (True,),
    "rope_local_base_freq": (), "rope_percent": (1,), "use_mem_rope": (False,),
    # norms and residuals
    "norm_type": ("rms_norm", "rmsnorm"), "use_post_norm": (False,), "residual_multiplier": (1,), "scale_depth": (),
    "parallel_residual": (False,), "use_parallel_residual": (False,),
    "apply_residual_connection_post_layernorm": (False,), "altup_num_inputs": (), "num_kv_shared_layers": (0,),
    # embedding and logits
    "embedding_multiplier": (1,), "scale_emb": (1,), "scale_embedding": (False,), "embedding_scale": (1,),
    "logits_scaling": (1,), "logit_scale": (1,), "logits_scale": (1,), "lm_head_multiplier": (1,),
    "final_logit_softcapping": (), "logits_soft_cap": (), "output_softcap": (), "dim_model_base": (),
    "lm_head_bias": (False,),
    # MLPs and experts
    "hidden_act": ("silu", "swish"), "hidden_activation": ("silu", "swish"), "mlp_bias": (False,), "use_bias": (False,),
    "moe_bias": (False,), "mlp_only_layers": ([],), "decoder_sparse_step": (1,), "first_k_dense_replace": (0,),
    "moe_layer_freq": (1,), "moe_layer_interval": (1,), "num_dense_layers": (0,), "interleave_moe_layer_step": (1,),
    "moe_layers": (), "n_shared_experts": (0,), "num_shared_experts": (0,), "shared_expert_intermediate_size": (0,),
    "moe_shared_expert_intermediate_size": (0,), "shared_intermediate_size": (0,), "swiglu_limit": (),
    "swiglu_alpha": (), "zero_expert_num": (0,), "moe_latent_size": (), "moe_num_null_experts": (0,),
    # routing
    "norm_topk_prob": (True,), "scoring_func": ("softmax",), "score_function": ("softmax",),
    "moe_router_activation_func": ("softmax",), "router_activation": ("softmax",), "topk_method": ("greedy",),
    "routed_scaling_factor": (1,), "router_scaling_factor": (1,), "moe_routed_scaling_factor": (1,), "n_group": (1,),
    "topk_group": (1,), "num_expert_group": (1,), "use_routing_bias": (False,), "router_bias": (False,),
    "moe_router_enable_expert_bias": (False,), "use_expert_bias": (False,), "router_logit_softcapping": (),
    "moe_router_logit_softcapping": (), "router_temperature": (1,), "route_scale": (1,), "route_norm": (True,),
    "normalize_expert_weights": (True, 1), "moe_capacity_factor": (), "expert_capacity": (), "num_zero_experts": (0,),
}  # fmt: skip
# The same, where the neutral value is a size of the model.
SIZED = frozenset({
    "attention_multiplier", "attention_scale", "query_pre_attn_scalar", "rotary_dim", "layer_types", "mlp_layer_types",
})  # fmt: skip
NEUTRAL_ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default",), "type": ("default",), "factor": (1,), "attention_factor": (1,),
    "partial_rotary_factor": (1,), "fope_sep_head": (True,), "mscale": (1,), "mscale_all_dim": (),
}  # fmt: skip

# Keys that leave the function of the weights alone: of training and generation, of the tokenizer and the towers, of the
# program that wrote the file, and of parts that this model lacks while the keys above are neutral.
IRRELEVANT = frozenset({
    "transformers_version", "architectures", "_name_or_path", "name_or_path", "_commit_hash", "auto_map",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset", "experts_implementation",
    "_experts_implementation", "unsloth_version", "unsloth_fixed", "return_dict", "use_return_dict", "torchscript",
    "tf_legacy_loss", "use_bfloat16", "chunk_size_feed_forward", "is_decoder", "cross_attention_hidden_size",
    "tie_encoder_decoder", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "task_specific_params", "tokenizer_class", "prefix", "model_max_length", "processor_class", "use_cache",
    "cache_implementation", "pretraining_tp", "base_config_key",
    # training
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "hidden_dropout_prob",
    "gradient_checkpointing", "output_router_logits", "output_attentions", "output_hidden_states",
    "router_jitter_noise", "router_z_loss_coef", "aux_loss_alpha", "seq_aux", "router_dtype",
    "num_nextn_predict_layers",
    # generation
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "suppress_tokens", "target_lookbehind", "temperature", "top_k", "top_p", "typical_p",
    # parts that this model lacks
    "intermediate_size", "sliding_window", "max_window_layers",
    # towers, and how their outputs enter
    "audio_config", "video_config", "image_seq_length", "projector_hidden_act", "projector_type",
    "vision_feature_layer", "vision_feature_select_strategy", "vision_projector_type", "force_image_size",
    "dynamic_image_size", "use_thumbnail", "max_dynamic_patch", "min_dynamic_patch", "select_layer", "ps_version",
    "template", "pad2square",
})  # fmt: skip
# Only used with other rope types, or equal for all axes where there is text alone.
IRRELEVANT_ROPE = frozenset({
    "original_max_position_embeddings", "mrope_section", "mrope_interleaved", "beta_fast", "beta_slow", "truncate",
})  # fmt: skip


def functional(section: Mapping[str, Any], head_dim: int, layers: int) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Keys of a text model, or of what is around it, that ask for another function: key, value, the neutral values."""
    sized = {
        "attention_multiplier": (head_dim**-0.5,), "attention_scale": (head_dim**-0.5,),
        "query_pre_attn_scalar": (head_dim,), "rotary_dim": (head_dim,),
        "layer_types": (["full_attention"] * layers,), "mlp_layer_types": (["sparse"] * layers,),
    }  # fmt: skip
    return _functional(section, NEUTRAL | sized)


def functional_rope(rope: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """The same for the object of `rope_scaling` or `rope_parameters`."""
    return _functional(rope, NEUTRAL_ROPE)


def _functional(
    section: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    for key, value in section.items():
        if key in neutral and value is not None and value not in neutral[key]:
            yield key, value, neutral[key]


def unknown(section: Mapping[str, Any]) -> list[str]:
    """Keys of a text model, or of what is around it, whose meaning is not written down here. Null counts as absent."""
    known = READ | NEUTRAL.keys() | SIZED | IRRELEVANT
    return [key for key, value in section.items() if value is not None and key not in known and not _is_token(key)]


def unknown_rope(rope: Mapping[str, Any]) -> list[str]:
    """The same for the object of `rope_scaling` or `rope_parameters`."""
    known = READ_ROPE | NEUTRAL_ROPE.keys() | IRRELEVANT_ROPE
    return [key for key, value in rope.items() if value is not None and key not in known]


def _is_token(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids", "_token_index"))
