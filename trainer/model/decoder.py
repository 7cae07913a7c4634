"""The Intern-S1 / Intern-S1-Pro text model as a plain single-device module, without parallelism.

With router_groups = 1 and positions = rope it is the Qwen3-MoE / Intern-S1 model.

Legend: B sequences · S tokens of each · T = B*S · H hidden size · V vocabulary · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.context.base import Documents
from parallel.sharding.local import local_part, local_region
from trainer.config.model import ModelConfig
from trainer.model.attention import Attention
from trainer.model.experts.base import Backend
from trainer.model.initial import fope_matrix, seeded_normal
from trainer.model.moe import MoE
from trainer.model.numerics import rms_norm, wide
from trainer.model.ops import TORCH, Ops
from trainer.model.replay import Replay
from trainer.model.rotary import Rotary
from trainer.model.router import RouterStats, Selection


class DecoderBlock(nn.Module):
    """Pre-norm decoder block: attention, then the mixture of experts, each around a residual."""

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH, backend: Backend | None = None) -> None:
        super().__init__()
        self.eps = cfg.norm_eps
        self.attention_norm = nn.Parameter(torch.empty(cfg.hidden_size))
        self.attention = Attention(cfg, ops)
        self.moe_norm = nn.Parameter(torch.empty(cfg.hidden_size))
        self.moe = MoE(cfg, ops, backend)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, docs: Documents, expert_ids: Tensor | Selection | None = None
    ) -> tuple[Tensor, RouterStats]:
        """x: [T, H]; cos, sin: tables of `Rotary`; expert_ids: [T, K] or None -> [T, H], router statistics."""
        x = x + self.attend(x, cos, sin, docs)
        y, stats = self.mix(x, expert_ids)
        return x + y, stats

    # Each half keeps its own tensors for backward, or recomputes them.

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, docs: Documents) -> Tensor:
        return self.attention(rms_norm(x, self.attention_norm, self.eps), cos, sin, docs)

    def mix(self, x: Tensor, expert_ids: Tensor | Selection | None) -> tuple[Tensor, RouterStats]:
        return self.moe(rms_norm(x, self.moe_norm, self.eps), expert_ids)


class DecoderOutput(NamedTuple):
    """hidden: in the compute dtype; [B, S, H] after the final norm, or [B * S, H] from a stage without one. routing:
    statistics of its layers' routers; None where it has no layer."""

    hidden: Tensor
    routing: RouterStats | None


@dataclass(frozen=True)
class Span:
    """The part of a decoder that a pipeline stage holds: layers `start` to `stop`, exclusive, before them the
    embedding if it `embeds`, after them the final norm and the LM head if it has the `head`."""

    start: int
    stop: int
    embeds: bool = True
    head: bool = True


class Decoder(nn.Module):
    """Embedding, L blocks, final RMSNorm, untied LM head whose logits are fp32 whatever the compute dtype; or the span
    of them that one pipeline stage holds, under the same names.

    Args:
        cfg: the model's sizes.
        compute_dtype: of the activations and the arithmetic of the linears; None for the parameters' dtype. The
            parameters themselves keep the dtype in which they were created (fp32 masters).
        ops: the operations of its parts. make_backend: as `choose_backend` returns it; None for the back end that `cfg`
            names, in plain torch. span: the part to build; None for the whole decoder. `embed`, `norm` and `lm_head`
            are None outside of it.

    Build it under `torch.device("meta")`, then `to_empty(device=...)` and `init_weights(seed)`.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        compute_dtype: torch.dtype | None = None,
        ops: Ops = TORCH,
        make_backend: Callable[[], Backend] | None = None,
        span: Span | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.compute_dtype = compute_dtype
        self.ops = ops
        self.span = span = span or Span(0, cfg.num_layers)
        self.embed = _matrix(cfg.vocab_size, cfg.hidden_size) if span.embeds else None
        self.rotary = Rotary(cfg, ops)
        # A dictionary, so that layers have their numbers in the whole model.
        self.layers = nn.ModuleDict(
            {
                str(number): DecoderBlock(cfg, ops, make_backend() if make_backend else None)
                for number in range(span.start, span.stop)
            }
        )
        self.norm = nn.Parameter(torch.empty(cfg.hidden_size)) if span.head else None
        self.lm_head = _matrix(cfg.vocab_size, cfg.hidden_size) if span.head else None

    @property
    def blocks(self) -> list[DecoderBlock]:
        return cast("list[DecoderBlock]", list(self.layers.values()))

    def forward(
        self,
        ids: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        expert_ids: Tensor | Replay | None = None,
    ) -> DecoderOutput:
        """Hidden states and router statistics; `logits` and the objectives continue from there.

        Args:
            ids: [B, S] int64; or embeds: [B, S, H], ready embeddings (images, signals) in its place; or, with
                positions, the hidden states [B * S, H] of the stage before.
            positions: [B, S] int64; default 0..S-1 in each row.
            cu_seqlens: [documents + 1] int32 on the CPU, bounds of the documents in the flattened B*S tokens; default:
                each row is one document.
            expert_ids: [L, B*S, K] int64, or a `Replay`, of a rollout; default: the routers select.
        Where ranks share a sequence (`Attention.core`), ids, embeds and positions are of this rank's slices of it and
        cu_seqlens of the whole; both positions and cu_seqlens must be given.
        Raises: ValueError unless exactly one of ids and embeds is given, for ids without an embedding, or for
            impossible cu_seqlens.
        """
        if ids is not None and embeds is None:
            if self.embed is None:
                raise ValueError("this stage has no embedding: give embeds [B, S, H]")
            x = F.embedding(ids, self.embed)
        elif embeds is not None and ids is None:
            x = embeds
        else:
            raise ValueError("give either ids [B, S] or embeds [B, S, H]")
        if self.embed is not None and torch.is_grad_enabled() and not x.requires_grad:
            # All below is frozen: gradients still go as far as here, so that every rank and step has the same passes.
            x = x.detach().requires_grad_()
        batch, seq_len = x.shape[:2] if positions is None else positions.shape
        x = x.to(self.activations).flatten(0, -2)
        ranks = self.blocks[0].attention.core.ranks
        if ranks > 1 and (positions is None or cu_seqlens is None):
            raise ValueError("slices of a sequence need their positions and the cu_seqlens of the whole")
        if positions is None:
            positions = torch.arange(seq_len, device=x.device).expand(batch, -1)
        if cu_seqlens is None:
            docs = Documents.rows(batch, seq_len, x.device)
        else:
            docs = Documents.from_cu_seqlens(cu_seqlens, batch * seq_len * ranks, x.device)
        cos, sin = self.rotary(positions.flatten(), x.dtype)
        stats = []
        for number, layer in zip(range(self.span.start, self.span.stop), self.blocks, strict=True):
            x, of_layer = layer(x, cos, sin, docs, None if expert_ids is None else expert_ids[number])
            stats.append(of_layer)
        if self.norm is not None:
            # Reshaped before the norm: FSDP hooks the tensors that this returns, and a view could lose its hook.
            x = rms_norm(x.view(batch, seq_len, -1), self.norm, self.cfg.norm_eps)
        return DecoderOutput(x, RouterStats.stack(stats) if stats else None)

    @property
    def activations(self) -> torch.dtype:
        """The dtype of hidden states."""
        return self.compute_dtype or next(self.parameters()).dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., H] of `forward` -> [..., V] in fp32 (fp64 for fp64). Only where there is an LM head."""
        assert self.lm_head is not None
        dtype = wide(hidden.dtype)
        return self.ops.linear(hidden.to(dtype), self.lm_head.to(dtype))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal(0, init_std) for matrices, 1 for norms, FoPE's fixed matrices; in place.

        Each tensor, and each expert of an expert tensor, draws from a generator keyed by (seed, name, expert), so that
        the values depend neither on the device nor on the layout. A rank draws each tensor (expert) whole and keeps its
        part.
        """
        for name, weight in self.named_parameters():
            part, where = local_part(weight), local_region(weight)
            std = self._initial_std(name, weight)
            if (constant := self._initial(name, weight)) is not None:
                part.fill_(constant)
            elif ".experts." in name:
                for number, expert in enumerate(range(where[0].start, where[0].stop)):
                    drawn = seeded_normal(weight.shape[1:], seed, f"{name}.{expert}") * std
                    part[number].copy_(drawn[where[1:]])
            else:
                part.copy_((seeded_normal(weight.shape, seed, name) * std)[where])
        for name, matrix in self._fope_matrices():
            heads, kept, _ = matrix.shape
            matrix.copy_(fope_matrix(heads, kept, self.cfg.fope_gain, seed, name))

    def _initial(self, name: str, weight: Tensor) -> float | None:
        """The number that all elements of a parameter start with; None where they are drawn."""
        return 1.0 if weight.ndim == 1 else None

    def _initial_std(self, name: str, weight: Tensor) -> float:
        """The standard deviation with which a parameter is drawn."""
        return self.cfg.init_std

    def _fope_matrices(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, buffer) for name, buffer in self.named_buffers() if name.endswith("_coef"))

    def num_params(self) -> int:
        """Number of elements of all parameters, counted on the module; `ModelConfig.num_params` is the closed form."""
        return sum(p.numel() for p in self.parameters())


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns))
