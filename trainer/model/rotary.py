"""Position tables: RoPE, and FoPE (Fourier position embedding, one pair of mixing matrices per kv head).

Legend: T tokens · n kv heads · d head dimension · D kept frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config.model import ModelConfig
from trainer.model.numerics import wide
from trainer.model.ops import TORCH, Ops


class Rotary(nn.Module):
    """cos and sin tables [T, 1, 1, d/2] (RoPE) or [T, n, 1, d/2] (FoPE), in fp32.

    FoPE keeps the D frequencies f_i = theta^(-2i/d) above 2 pi / max_position, and for each kv head takes
    cos(t f) A_cos and sin(t f) A_sin, A = I + a fixed random matrix; the dimensions without a frequency are padded
    with 1 for cos and with `fope_pad_sin` for sin. Published code pads sin with 1 too; 0 is the switch's other value.
    Source: FoPE paper, section 3, and the released Intern-S1-Pro model code.
    """

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH) -> None:
        super().__init__()
        self.ops = ops
        self.pairs, self.theta = cfg.head_dim // 2, cfg.rope_theta
        self.fope, self.pad_sin = cfg.positions == "fope", cfg.fope_pad_sin
        self.cos_coef: Tensor
        self.sin_coef: Tensor
        if self.fope:
            kept = cfg.fope_frequencies()
            self.register_buffer("cos_coef", torch.empty(cfg.num_kv_heads, kept, kept))
            self.register_buffer("sin_coef", torch.empty(cfg.num_kv_heads, kept, kept))

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids: [T] int64 -> cos, sin [T, n or 1, 1, d/2] in fp32, or fp64 when `dtype` is."""
        dtype = wide(dtype)
        steps = torch.arange(self.pairs, device=position_ids.device, dtype=torch.float32)
        frequencies = (1.0 / self.theta ** (steps / self.pairs)).to(dtype)
        if self.fope:
            frequencies = frequencies[: self.cos_coef.shape[-1]]
        angles = position_ids.to(dtype).unsqueeze(-1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.fope:
            cos = self._mix(cos, self.cos_coef, pad=1.0)
            sin = self._mix(sin, self.sin_coef, pad=self.pad_sin)
        else:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return cos.unsqueeze(2), sin.unsqueeze(2)

    def _mix(self, waves_TD: Tensor, coefficients_nDD: Tensor, pad: float) -> Tensor:
        heads, kept, _ = coefficients_nDD.shape
        matrix = coefficients_nDD.to(waves_TD.dtype).transpose(1, 2).flatten(0, 1)
        mixed = self.ops.linear(waves_TD, matrix).view(-1, heads, kept)
        return torch.nn.functional.pad(mixed, (0, self.pairs - mixed.shape[-1]), value=pad).contiguous()
