"""The Intern-S1 / Intern-S1-Pro text model as a plain single-device module, without parallelism.

With router_groups = 1 and positions = rope it is the Qwen3-MoE / Intern-S1 model.

Legend: B sequences · S tokens of each · T = B*S · H hidden size · V vocabulary · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.sharding.local import local_part, local_region
from trainer.config.model import ModelConfig
from trainer.model.attention import Attention, Documents
from trainer.model.experts.base import Backend
from trainer.model.initial import fope_matrix, seeded_normal
from trainer.model.moe import MoE
from trainer.model.numerics import rms_norm, wide
from trainer.model.ops import TORCH, Ops
from trainer.model.rotary import Rotary
from trainer.model.router import RouterStats


class DecoderBlock(nn.Module):
    """Pre-norm decoder block: attention, then the mixture of experts, each around a residual."""

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH, backend: Backend | None = None) -> None:
        super().__init__()
        self.eps = cfg.norm_eps
        self.attention_norm = nn.Parameter(torch.empty(cfg.hidden_size))
        self.attention = Attention(cfg)
        self.moe_norm = nn.Parameter(torch.empty(cfg.hidden_size))
        self.moe = MoE(cfg, ops, backend)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, docs: Documents, expert_ids: Tensor | None = None
    ) -> tuple[Tensor, RouterStats]:
        """x: [T, H]; cos, sin: tables of `Rotary`; expert_ids: [T, K] or None -> [T, H], router statistics."""
        x = x + self.attention(rms_norm(x, self.attention_norm, self.eps), cos, sin, docs)
        y, stats = self.moe(rms_norm(x, self.moe_norm, self.eps), expert_ids)
        return x + y, stats


class DecoderOutput(NamedTuple):
    """hidden: [B, S, H] after the final norm, in the compute dtype. routing: statistics of all layers' routers."""

    hidden: Tensor
    routing: RouterStats


class Decoder(nn.Module):
    """Embedding, L blocks, final RMSNorm, untied LM head whose logits are fp32 whatever the compute dtype.

    Args:
        cfg: the model's sizes.
        compute_dtype: of the activations and the arithmetic of the linears; None for the parameters' dtype. The
            parameters themselves keep the dtype in which they were created (fp32 masters).
        ops: the routers' operations. make_backend: as `choose_backend` returns it; None for the back end that `cfg`
            names, in plain torch.

    Build it under `torch.device("meta")`, then `to_empty(device=...)` and `init_weights(seed)`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        ops: Ops = TORCH,
        make_backend: Callable[[], Backend] | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.compute_dtype = compute_dtype
        self.embed = nn.Parameter(torch.empty(cfg.vocab_size, cfg.hidden_size))
        self.rotary = Rotary(cfg)
        self.layers = nn.ModuleList(
            DecoderBlock(cfg, ops, make_backend() if make_backend else None) for _ in range(cfg.num_layers)
        )
        self.norm = nn.Parameter(torch.empty(cfg.hidden_size))
        self.lm_head = nn.Parameter(torch.empty(cfg.vocab_size, cfg.hidden_size))

    @property
    def blocks(self) -> list[DecoderBlock]:
        return cast("list[DecoderBlock]", list(self.layers))

    def forward(
        self,
        ids: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        expert_ids: Tensor | None = None,
    ) -> DecoderOutput:
        """Hidden states and router statistics; `logits` and the objectives continue from there.

        Args:
            ids: [B, S] int64; or embeds: [B, S, H] ready embeddings (images, signals) in its place.
            positions: [B, S] int64; default 0..S-1 in each row.
            cu_seqlens: [documents + 1] int32 on the CPU, bounds of the documents in the flattened B*S tokens; default:
                each row is one document.
            expert_ids: [L, B*S, K] int64, replayed from a rollout; default: the routers select.
        Raises: ValueError unless exactly one of ids and embeds is given, or for impossible cu_seqlens.
        """
        if ids is not None and embeds is None:
            x = F.embedding(ids, self.embed)
        elif embeds is not None and ids is None:
            x = embeds
        else:
            raise ValueError("give either ids [B, S] or embeds [B, S, H]")
        batch, seq_len, _ = x.shape
        x = x.to(self.compute_dtype or self.embed.dtype).flatten(0, 1)
        if positions is None:
            positions = torch.arange(seq_len, device=x.device).expand(batch, -1)
        if cu_seqlens is None:
            docs = Documents.rows(batch, seq_len, x.device)
        else:
            docs = Documents.from_cu_seqlens(cu_seqlens, batch * seq_len, x.device)
        cos, sin = self.rotary(positions.flatten(), x.dtype)
        stats = []
        for number, layer in enumerate(self.layers):
            x, of_layer = layer(x, cos, sin, docs, None if expert_ids is None else expert_ids[number])
            stats.append(of_layer)
        # Reshaped before the norm: FSDP hooks the tensors that this returns, and a view could lose its hook.
        hidden = rms_norm(x.view(batch, seq_len, -1), self.norm, self.cfg.norm_eps)
        return DecoderOutput(hidden, RouterStats.stack(stats))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., H] of `forward` -> [..., V] in fp32 (fp64 for fp64)."""
        dtype = wide(hidden.dtype)
        return F.linear(hidden.to(dtype), self.lm_head.to(dtype))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal(0, init_std) for matrices, 1 for norms, FoPE's fixed matrices; in place.

        Each tensor, and each expert of an expert tensor, draws from a generator keyed by (seed, name, expert), so that
        the values depend neither on the device nor on the layout. A rank draws each tensor (expert) whole and keeps its
        part.
        """
        for name, weight in self.named_parameters():
            part, where = local_part(weight), local_region(weight)
            if weight.ndim == 1:
                part.fill_(1.0)
            elif ".experts." in name:
                for number, expert in enumerate(range(where[0].start, where[0].stop)):
                    drawn = seeded_normal(weight.shape[1:], seed, f"{name}.{expert}") * self.cfg.init_std
                    part[number].copy_(drawn[where[1:]])
            else:
                part.copy_((seeded_normal(weight.shape, seed, name) * self.cfg.init_std)[where])
        for name, matrix in self._fope_matrices():
            heads, kept, _ = matrix.shape
            matrix.copy_(fope_matrix(heads, kept, self.cfg.fope_gain, seed, name))

    def _fope_matrices(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, buffer) for name, buffer in self.named_buffers() if name.endswith("_coef"))

    def num_params(self) -> int:
        """Number of elements of all parameters, counted on the module; `ModelConfig.num_params` is the closed form."""
        return sum(p.numel() for p in self.parameters())
