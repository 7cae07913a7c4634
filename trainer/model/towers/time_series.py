"""The time-series tower of Intern-S1-Pro: signals of any length, channels and sampling rate.

A signal is cut into overlapping patches whose length grows with the sampling rate; a small encoder turns each patch
into a vector; pairs of them pass through causal layers like Whisper's (arXiv 2212.04356).

Source: a serving engine's code for the published weights (lmdeploy, interns1_pro_ts.py); no training code was
published. The published patch encoder is torch's layer, whose dropout in training is not known and is left out here.

Legend: T steps · C channels · S stride · P = 2 S steps of a patch · n patches · L = n // 2 pairs · w width of the patch
encoder · W width of the layers · h heads · d head dimension · H hidden size of the text model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.config.model import TimeSeriesConfig
from trainer.model.towers.projector import Projector
from trainer.model.towers.signal_patches import EPS as NORMALISE_EPS
from trainer.model.towers.signal_patches import LONGEST, known_rate, normalised, patch_count, patch_stride

EPS = 1e-5  # of the layer norms
# Steps of patches that are encoded at a time, so that a long signal needs little memory.
STEPS_AT_A_TIME = 1 << 14
RECOMPUTE: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here draws random numbers


class Signal(NamedTuple):
    """A signal as the tower takes it. values: [T, C]; rate: steps per second, above 0.

    stride: steps from a patch to the next, where all steps are to be in a patch; None for the published patches.
    """

    values: Tensor
    rate: float
    stride: int | None = None


def prepare_signal(values: Tensor, rate: float | None = None) -> Signal:
    """Normalise a recording by the published rule: a z-score of each channel, then the first 240,000 steps.

    Args:
        values: [T, C] or [T], of any real dtype. rate: in Hz; None or 0 and below where it is unknown, which counts as
            max(T / 4, 1) for the T steps that are kept.
    Returns: a `Signal` in fp32. A channel that is constant becomes 0.
    Raises: ValueError for a signal without steps or channels, of another shape, complex or not finite (after what is
        left out, too), or a rate that is not finite.
    """
    if rate is not None and not math.isfinite(rate):
        raise ValueError(f"a sampling rate of {rate}; use one in Hz, or None where it is unknown")
    if values.is_complex() or not values.isfinite().all():
        raise ValueError("a signal with complex numbers, NaN or infinity; replace or remove them")
    if values.ndim not in (1, 2) or not values.numel():
        raise ValueError(f"a signal of shape {list(values.shape)}; use [steps, channels] or [steps], none of them 0")
    wide = values.reshape(len(values), -1).double().cpu().numpy()
    kept = torch.from_numpy(normalised(wide, NORMALISE_EPS)[:LONGEST]).to(values.device)
    return Signal(kept, known_rate(rate, len(kept)))


class PatchEncoder(nn.Module):
    """A convolution, fixed positions and one post-norm encoder layer over the steps of a patch, then means."""

    positions: Tensor

    def __init__(self, cfg: TimeSeriesConfig) -> None:
        super().__init__()
        w = cfg.patch_width
        self.heads = cfg.patch_heads
        self.conv = nn.Conv1d(1, w, 5, padding=2)
        self.register_buffer("positions", torch.empty(cfg.patch_positions, 1, w))
        self.qkv = nn.Linear(w, 3 * w)
        self.out = nn.Linear(w, w)
        self.attention_norm = nn.LayerNorm(w, EPS)
        self.up = nn.Linear(w, cfg.patch_mlp_width)
        self.down = nn.Linear(cfg.patch_mlp_width, w)
        self.mlp_norm = nn.LayerNorm(w, EPS)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """patches: [n, C, P] of each signal -> [n of all, w], the means over steps and channels."""
        return torch.cat([self._means(of_signal) for of_signal in patches])

    def _means(self, patches: Tensor) -> Tensor:
        n, C, P = patches.shape
        # Compatibility with the published code: steps and channels are interleaved, not transposed, where C > 1.
        rows = patches.transpose(1, 2).reshape(n * C, 1, P)
        parts = rows.split(max(1, STEPS_AT_A_TIME // P))
        # A step needs over a thousand times its own bytes between forward and backward, so parts are computed again.
        keep = len(parts) == 1 or not torch.is_grad_enabled()
        encode = self._encode if keep else functools.partial(checkpoint, self._encode, **RECOMPUTE)
        return torch.cat([encode(part) for part in parts]).view(n, C, -1).mean(1)

    def _encode(self, rows: Tensor) -> Tensor:
        """rows: [r, 1, P] -> [r, w]."""
        x = F.relu(_convolve(self.conv, rows)).transpose(1, 2)
        x = x + self.positions[: x.shape[1], 0].to(x.dtype)
        x = self.attention_norm(x + self.out(_attend(self.qkv(x).chunk(3, dim=-1), self.heads)))
        return self.mlp_norm(x + self.down(F.relu(self.up(x)))).mean(1)


class TimeSeriesLayer(nn.Module):
    """Pre-norm layer with causal attention; keys have no bias."""

    def __init__(self, cfg: TimeSeriesConfig) -> None:
        super().__init__()
        self.heads = cfg.num_heads
        self.attention_norm = nn.LayerNorm(cfg.width, EPS)
        self.q = nn.Linear(cfg.width, cfg.width)
        self.k = nn.Linear(cfg.width, cfg.width, bias=False)
        self.v = nn.Linear(cfg.width, cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)
        self.mlp_norm = nn.LayerNorm(cfg.width, EPS)
        self.up = nn.Linear(cfg.width, cfg.mlp_width)
        self.down = nn.Linear(cfg.mlp_width, cfg.width)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x: [tokens, W]; lengths: tokens of each signal -> [tokens, W]."""
        y = self.attention_norm(x)
        qkv = (part.split(lengths) for part in (self.q(y), self.k(y), self.v(y)))
        attended = [
            _attend([part[None] for part in parts], self.heads, causal=True)[0] for parts in zip(*qkv, strict=True)
        ]
        x = x + self.out(torch.cat(attended))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class TimeSeriesTower(nn.Module):
    """Signals -> embeddings of the text model."""

    def __init__(self, cfg: TimeSeriesConfig) -> None:
        super().__init__()
        self.patches = PatchEncoder(cfg)
        self.adapt_in = nn.Linear(2 * cfg.patch_width, cfg.bins)
        self.conv1 = nn.Conv1d(cfg.bins, cfg.width, 3, padding=1)
        self.conv2 = nn.Conv1d(cfg.width, cfg.width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(cfg.positions, cfg.width))
        self.layers = nn.ModuleList([TimeSeriesLayer(cfg) for _ in range(cfg.num_layers)])
        self.norm = nn.LayerNorm(cfg.width, EPS)
        self.adapt_out = nn.Linear(cfg.width, cfg.adapt_width)
        self.projector = Projector(cfg.adapt_width, cfg.out_width)

    def forward(self, signals: Sequence[Signal]) -> Tensor:
        """Embeddings of all signals, one after another, `token_count` of each: [tokens, H].

        Raises: ValueError for a signal without steps or channels, a rate of 0 or below, or a patch that is longer than
            the table of positions in a patch.
        """
        # Each module is called once, however many signals there are: ranks that share its weights gather them together.
        patches = [self._patches(signal) for signal in signals]
        entered = [self._enter(x_nw) for x_nw in self.patches(patches).split([len(of_signal) for of_signal in patches])]
        x, lengths = torch.cat(entered), [len(of_signal) for of_signal in entered]
        for layer in self.layers:
            x = layer(x, lengths)
        return self.projector(self.adapt_out(self.norm(x)))

    def _enter(self, x_nw: Tensor) -> Tensor:
        """Encoded patches of a signal [n, w] -> the input of the layers [tokens, W]."""
        x_Lw = x_nw.view(-1, self.adapt_in.in_features)
        x = F.gelu(_convolve(self.conv1, self.adapt_in(x_Lw).T[None]))
        x = F.gelu(_convolve(self.conv2, x))[0].T
        table = self.positions[: len(x)]
        return x + F.pad(table, (0, 0, 0, len(x) - len(table)))  # tokens beyond the table have no position

    def _patches(self, signal: Signal) -> Tensor:
        """[n, C, P] with n even."""
        values = signal.values.to(self.adapt_in.weight.dtype)
        if values.ndim != 2 or not values.numel():
            raise ValueError(f"a signal of shape {list(values.shape)}; use [steps, channels], none of them 0")
        stride = patch_stride(signal.rate) if signal.stride is None else signal.stride
        widest = len(self.patches.positions) // 2
        if not 1 <= stride <= widest:
            raise ValueError(f"a stride of {stride} steps; this tower has them from 1 to {widest}")
        n = patch_count(len(values), signal.rate, signal.stride)
        values = F.pad(values, (0, 0, 0, max(0, (n + 1) * stride - len(values))))
        return values.unfold(0, 2 * stride, stride)[:n]


def _convolve(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution in the dtype of its weight, under autocast too: in bf16 its backward pass on a CPU (torch 2.13) now
    and then gave an infinite gradient of the same numbers."""
    with torch.autocast(x.device.type, enabled=False):
        found: Tensor = conv(x.to(conv.weight.dtype))
    return found


def _attend(qkv: Sequence[Tensor], heads: int, causal: bool = False) -> Tensor:
    """q, k, v: [r, s, h d] -> [r, s, h d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in qkv)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
