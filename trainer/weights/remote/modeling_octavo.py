# SPDX-License-Identifier: Apache-2.0
"""The text model of a mixture of experts with router groups, for transformers 5, as Octavo exports it.

It computes what Octavo computes in training: norms, rotary embedding, router and LM head in fp32, the rest in the
dtype of the weights. Towers for images and signals that the checkpoint may have are not loaded.

Legend: B sequences · S tokens of each · T = B*S · H hidden size · h heads · n kv heads · d head dimension · E experts ·
K experts per token · G router groups · D frequencies of the Fourier position embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_octavo import OctavoConfig, OctavoTextConfig


def wide(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class OctavoRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x).to(x.dtype)

    def wide(self, x: Tensor) -> Tensor:
        """The norm before it is rounded to the dtype of x."""
        high = wide(x)
        return high * torch.rsqrt(high.square().mean(-1, keepdim=True) + self.eps) * self.weight.to(high.dtype)


class OctavoRotary(nn.Module):
    """cos and sin [B, S, n or 1, d/2] in fp32: of RoPE, or of the Fourier position embedding (FoPE).

    FoPE keeps the D frequencies above 2 pi / max_position_embeddings, mixes their waves by one fixed matrix for each
    kv head, and fills up with 1 for cos and with `fope_pad_sin` (1 where it is not given) for sin.
    """

    def __init__(self, config: OctavoTextConfig) -> None:
        super().__init__()
        positions: dict[str, Any] = config.rope_parameters
        d = config.head_dim
        self.pairs, self.theta = d // 2, float(positions["rope_theta"])
        self.fope = positions.get("fope_init_factor") is not None
        self.pad_sin = float(positions.get("fope_pad_sin", 1.0))
        self.cos_coef: Tensor
        self.sin_coef: Tensor
        if self.fope:
            lowest = 2 * math.pi / config.max_position_embeddings
            kept = sum(self.theta ** (-2 * i / d) > lowest for i in range(self.pairs))
            eye = torch.eye(kept, dtype=torch.float32).repeat(config.num_key_value_heads, 1, 1)
            self.register_buffer("cos_coef", eye)
            self.register_buffer("sin_coef", eye.clone())

    @torch.no_grad()
    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """x: hidden states, for their dtype and device. positions: [B, S]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        steps = torch.arange(self.pairs, dtype=torch.float32, device=x.device)
        frequencies = (1.0 / self.theta ** (steps / self.pairs)).to(dtype)
        if self.fope:
            frequencies = frequencies[: self.cos_coef.shape[-1]]
        angles = positions.to(x.device, dtype).unsqueeze(-1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        if not self.fope:
            return cos.unsqueeze(-2), sin.unsqueeze(-2)
        return self.mix(cos, self.cos_coef, 1.0), self.mix(sin, self.sin_coef, self.pad_sin)

    def mix(self, waves: Tensor, matrices: Tensor, pad: float) -> Tensor:
        """[B, S, D] -> [B, S, n, d/2]."""
        mixed = torch.einsum("bsd,nde->bsne", waves, matrices.to(waves.device, waves.dtype))
        return F.pad(mixed, (0, self.pairs - mixed.shape[-1]), value=pad)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [..., d]; cos, sin: broadcast to [..., d/2]. The two halves of d are the pairs."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def eager_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """q: [B, h, S, d]; k, v: [B, n, keys, d] -> [B, S, h, d] and the weights [B, h, S, keys]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask[..., : k.shape[-2]]
    weights = wide(scores).softmax(-1).to(q.dtype)
    return (weights @ v).transpose(1, 2), weights


class OctavoAttention(nn.Module):
    """Grouped-query attention with an RMSNorm on every head of q and k before the rotary embedding."""

    def __init__(self, config: OctavoTextConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.is_causal = config, layer, True
        self.head_dim, self.kv_heads = config.head_dim, config.num_key_value_heads
        self.num_key_value_groups = config.num_attention_heads // self.kv_heads  # read by transformers' functions
        rows, kv_rows = config.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, rows, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_rows, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_rows, bias=False)
        self.o_proj = nn.Linear(rows, config.hidden_size, bias=False)
        self.q_norm = OctavoRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = OctavoRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        """x: [B, S, H]; cos, sin: [B, S, n or 1, d/2] -> [B, S, H]."""
        batch, length, _ = x.shape
        grouped = (batch, length, self.kv_heads, -1, self.head_dim)  # the heads that share a kv head side by side
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        q = rotate(self.q_norm.wide(self.q_proj(x).view(grouped)), cos, sin).to(x.dtype)
        k = rotate(self.k_norm.wide(self.k_proj(x).view(grouped)), cos, sin).to(x.dtype)
        q, k = q.flatten(2, 3).transpose(1, 2), k.flatten(2, 3).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        y, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs)
        return self.o_proj(y.reshape(batch, length, -1))


class OctavoRouter(nn.Module):
    """The K/G experts of each of G groups with the largest logits, and their weights: a softmax over these K logits.

    It equals the softmax over all experts, divided by its sum over those selected. Ties go to the lowest index.
    """

    def __init__(self, config: OctavoTextConfig) -> None:
        super().__init__()
        self.groups, self.size = config.router_n_groups, config.num_experts // config.router_n_groups
        self.picks = config.num_experts_per_tok // self.groups
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: [T, H] -> logits [T, E] in fp32, ids [T, K], slots in the order of the groups, weights [T, K] in fp32."""
        high = wide(x)
        logits = F.linear(high, self.weight.to(high.dtype))
        # Not topk, which breaks ties as it likes.
        order = logits.view(-1, self.groups, self.size).sort(dim=-1, descending=True, stable=True).indices
        first = torch.arange(0, len(self.weight), self.size, device=x.device).view(1, -1, 1)
        ids = (order[..., : self.picks] + first).flatten(1)
        return logits, ids, logits.gather(-1, ids).softmax(-1)


class OctavoExpert(nn.Module):
    """One expert: a SwiGLU network."""

    def __init__(self, config: OctavoTextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.moe_intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x: [rows, H]; weights: [rows], of the router."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x) * weights.to(x.dtype).unsqueeze(-1))


class OctavoMoE(nn.Module):
    """The sum over each token's experts of routing weight * expert(token)."""

    def __init__(self, config: OctavoTextConfig) -> None:
        super().__init__()
        self.gate = OctavoRouter(config)
        self.experts = nn.ModuleList([OctavoExpert(config) for _ in range(config.num_experts)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, S, H] -> [B, S, H], the router's logits [T, E]."""
        rows = x.flatten(0, 1)
        logits, ids, weights = self.gate(rows)
        total = torch.zeros_like(wide(rows))
        for number in ids.unique().tolist():
            tokens, slots = (ids == number).nonzero(as_tuple=True)
            part = self.experts[number](rows[tokens], weights[tokens, slots])
            total = total.index_add(0, tokens, part.to(total.dtype))
        return total.to(x.dtype).view_as(x), logits


class OctavoDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the mixture of experts, each behind a norm and around a residual."""

    def __init__(self, config: OctavoTextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = OctavoRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = OctavoAttention(config, layer)
        self.post_attention_layernorm = OctavoRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = OctavoMoE(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, past_key_values, **kwargs)
        y, logits = self.mlp(self.post_attention_layernorm(x))
        return x + y, logits


class OctavoPreTrainedModel(PreTrainedModel):
    config_class: type[PreTrainedConfig] = OctavoConfig
    base_model_prefix = "model"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["OctavoDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Octavo computes it in fp32 whatever the dtype of the others is.
    _keep_in_fp32_modules_strict = ["lm_head"]
    _keys_to_ignore_on_load_unexpected = [r"^model\.visual\.", r"^model\.time_series\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OctavoRouter):
            nn.init.normal_(module.weight, std=self.config.get_text_config().initializer_range)


class OctavoTextModel(OctavoPreTrainedModel):
    """Embedding, layers and the final norm."""

    config_class = OctavoTextConfig

    def __init__(self, config: OctavoTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = OctavoRotary(config)
        self.layers = nn.ModuleList([OctavoDecoderLayer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = OctavoRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()


class OctavoModel(OctavoPreTrainedModel):
    """The text model under the name that it has in the checkpoint, `model.language_model`."""

    def __init__(self, config: OctavoConfig) -> None:
        super().__init__(config)
        self.language_model = OctavoTextModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """input_ids: [B, S], or inputs_embeds: [B, S, H]; attention_mask: [B, keys], 0 for padding.

        The outputs `hidden_states` (L + 1 tensors [B, S, H]) and `router_logits` (L tensors [T, E]) on request.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        text, config = self.language_model, self.config.text_config
        x = text.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device).unsqueeze(0)
        mask = create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        cos, sin = text.rotary_emb(x, position_ids)
        hidden, routers = [], []
        for layer in text.layers:
            hidden.append(x)
            x, logits = layer(x, cos, sin, mask, past_key_values=past_key_values, **kwargs)
            routers.append(logits)
        x = text.norm(x)
        return MoeModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*hidden, x) if output_hidden_states else None,
            router_logits=tuple(routers) if output_router_logits else None,
        )


class InternS1ProForConditionalGeneration(OctavoPreTrainedModel, GenerationMixin):
    """The text model with its LM head, whose logits are fp32.

    LMDeploy looks up its own class by this name, which it takes from auto_map; so the name is the architecture's.
    """

    def __init__(self, config: OctavoConfig) -> None:
        super().__init__(config)
        self.model = OctavoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As of `OctavoModel`; labels: [B, S], -100 where no loss is wanted; logits_to_keep: the last so many positions
        (0: all), or their indices. `logits`: [B, positions, vocabulary] in fp32."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = out.last_hidden_state[:, kept]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logits = F.linear(hidden.to(dtype), self.lm_head.weight.to(dtype))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            router_logits=out.router_logits,
        )
