"""The training loss: chunked cross-entropy with an fp32 head, and the routers' balance and z losses.

Legend: N tokens · H hidden size · V vocabulary · L layers · E experts · G router groups · n = E/G.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data.batch import IGNORE, Batch
from trainer.precision import wide

if TYPE_CHECKING:
    from trainer.config.model import ModelConfig
    from trainer.model.decoder import Decoder
    from trainer.model.router import RouterStats


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's probabilities are in cache; the logits of all tokens
    never exist at once and nothing is computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, with_grad: bool) -> Tensor:
        dtype = wide(hidden.dtype)
        high, head = hidden.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        rows = min(chunk, len(labels))
        logit_buffer, p_buffer = head.new_empty(rows, len(head)), head.new_empty(rows, len(head))
        d_hidden = torch.empty_like(high) if with_grad else None
        d_weight = torch.zeros_like(head) if with_grad else None
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            h_NH, counted_N1 = high[part], (labels[part] != IGNORE).unsqueeze(-1).to(dtype)
            target_N1 = labels[part].clamp_min(0).unsqueeze(-1)
            logits, p = logit_buffer[: len(h_NH)], p_buffer[: len(h_NH)]
            torch.mm(h_NH, head.t(), out=logits)
            torch.softmax(logits, dim=-1, out=p)
            # The largest probability is 1 / sum(exp(z - max)), which gives logsumexp without a second exponential.
            log_z = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
            total += ((log_z - logits.gather(-1, target_N1)) * counted_N1).sum()
            if d_hidden is not None and d_weight is not None:
                p.scatter_add_(-1, target_N1, torch.full_like(counted_N1, -1.0))
                torch.mm(p, head, out=d_hidden[part]).mul_(counted_N1)
                d_weight.addmm_(p.t(), h_NH * counted_N1)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (d_hidden * grads[0]).to(hidden_dtype), (d_weight * grads[0]).to(weight_dtype), None, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Cross-entropy in nats of the logits hidden @ weight.T, summed over the labels that are not IGNORE.

    Args: hidden: [N, H]. weight: [V, H]. labels: [N] int64 in [0, V) or IGNORE. chunk: tokens with logits at a time.
    Returns: 0-dim, fp32 (fp64 for fp64 inputs); head and softmax are computed in that dtype.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk, torch.is_grad_enabled())


def balance_loss(stats: RouterStats, cfg: ModelConfig, tokens: int) -> Tensor:
    """Load-balance loss summed over layers; `cfg.balance_coef` a layer at perfect balance.

    For group g of n experts: n * sum_e f_e P_e, with f_e the share of the group's selections that went to e (no
    gradient) and P_e the mean over tokens of e's probability within its group; mean over groups. balance=global takes
    all experts as one group: E * sum_e f_e P_e, the form of the reference engine.

    Args:
        stats: of all layers; `counts` [L, E] over the global micro-batch, `probabilities` [L, E] over this
            rank's tokens.
        tokens: of the global micro-batch.
    Returns: 0-dim; summed over ranks it is the loss of the global micro-batch.
    """
    groups = cfg.router_groups if cfg.balance == "group" else 1
    counts_LGn = stats.counts.unflatten(-1, (groups, -1))
    # Replayed ids may leave a group without a single pick; it then has no share to balance.
    share_LGn = counts_LGn / counts_LGn.sum(-1, keepdim=True).clamp_min(1.0)
    mean_LGn = stats.probabilities.unflatten(-1, (groups, -1)) / tokens
    per_group = cfg.num_experts // groups
    return cfg.balance_coef * per_group * (share_LGn * mean_LGn).sum(-1).mean(-1).sum()


@dataclass
class LossTerms:
    """Scalars of one micro-batch, each to be summed over a step's micro-batches and ranks.

    cross_entropy: nats per supervised token of the step. balance, z: with their coefficients. total: their sum, what
    backward is called on. max_load: largest number of tokens of an expert over the mean of its layer, no gradient (a
    maximum over ranks and a mean over micro-batches are meaningful).
    """

    cross_entropy: Tensor
    balance: Tensor
    z: Tensor
    max_load: Tensor

    @property
    def total(self) -> Tensor:
        return self.cross_entropy + self.balance + self.z


def loss_terms(
    model: Decoder,
    batch: Batch,
    *,
    token_count: int | float | Tensor,
    micro_batches: int,
    chunk: int,
    ranks: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> LossTerms:
    """One micro-batch through the model.

    Args:
        token_count: supervised tokens of the whole step, over all micro-batches and ranks.
        micro_batches: of the step on one rank; the router losses are means over them.
        chunk: tokens whose logits exist at one time.
        ranks: that each hold a micro-batch of this size; sum_over_ranks: adds up the selection counts [L, E] over them.
    """
    cross_entropy, stats = model(
        batch.input_ids, batch.position_ids, batch.cu_seqlens, labels=batch.labels, loss_chunk=chunk
    )
    if sum_over_ranks is not None:
        stats = stats._replace(counts=sum_over_ranks(stats.counts))
    tokens = stats.tokens * ranks
    with torch.no_grad():
        max_load = (stats.counts.amax(-1) / stats.counts.mean(-1)).amax()
    return LossTerms(
        cross_entropy / token_count,
        balance_loss(stats, model.cfg, tokens) / micro_batches,
        model.cfg.z_loss_coef * stats.log_z_squared.sum() / (tokens * micro_batches),
        max_load,
    )
