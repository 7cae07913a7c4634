# SPDX-License-Identifier: Apache-2.0
"""Configuration of a mixture of experts with router groups, in Intern-S1-Pro's layout, as Octavo exports it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class OctavoTextConfig(PreTrainedConfig):
    """The text model's part: sizes under the names of Qwen3-MoE, and two things more.

    router_n_groups: the experts are that many groups of equal size, and a token takes as many experts from each.
    rope_scaling with fope_init_factor: Fourier position embedding in place of RoPE.
    """

    model_type = "interns1_pro_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values"]
    ignore_keys_at_rope_validation = {"fope_init_factor", "fope_sep_head", "fope_pad_sin", "num_inv_freq", "rope_theta"}

    def __init__(
        self,
        vocab_size: int = 155008,
        hidden_size: int = 4096,
        num_hidden_layers: int = 94,
        num_attention_heads: int = 64,
        num_key_value_heads: int = 4,
        head_dim: int | None = None,
        num_experts: int = 512,
        num_experts_per_tok: int = 8,
        moe_intermediate_size: int = 1536,
        router_n_groups: int = 1,
        max_position_embeddings: int = 262144,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 1e4,
        initializer_range: float = 0.02,
        hidden_act: str = "silu",
        use_cache: bool = True,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        **other: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_intermediate_size = moe_intermediate_size
        self.router_n_groups = router_n_groups
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        self.hidden_act = hidden_act
        self.use_cache = use_cache
        # One object under both of its names: programs differ in which they read.
        positions = {"rope_type": "default", "rope_theta": rope_theta, **(rope_scaling or rope_parameters or {})}
        self.rope_parameters = positions
        other["rope_scaling"] = positions
        super().__init__(**other)


class OctavoVisionConfig(PreTrainedConfig):
    """The vision tower's part. The model beside this file leaves the tower out; serving engines build it."""

    model_type = "interns1_pro_vision"
    base_config_key = "vision_config"


class OctavoSignalConfig(PreTrainedConfig):
    """The signal tower's part. The model beside this file leaves the tower out; serving engines build it."""

    model_type = "interns1_pro_time_series"
    base_config_key = "ts_config"


class OctavoConfig(PreTrainedConfig):
    """A text model and the towers that the checkpoint has beside it."""

    model_type = "interns1_pro"
    sub_configs = {"text_config": OctavoTextConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        text_config: dict[str, Any] | OctavoTextConfig | None = None,
        vision_config: dict[str, Any] | OctavoVisionConfig | None = None,
        ts_config: dict[str, Any] | OctavoSignalConfig | None = None,
        **other: Any,
    ) -> None:
        def section(kind: type[PreTrainedConfig], given: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
            return kind(**given) if isinstance(given, dict) else given

        self.text_config: Any = section(OctavoTextConfig, text_config or {})
        # Absent where there is no tower: engines ask with hasattr.
        if vision_config:
            self.vision_config = section(OctavoVisionConfig, vision_config)
        if ts_config:
            self.ts_config = section(OctavoSignalConfig, ts_config)
        super().__init__(**other)
