"""The routers' losses, which every objective adds to its own: load balance and the z loss.

Legend: L layers · E experts · G router groups · n = E/G experts a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.model.router import RouterStats
from trainer.objectives.scalars import GlobalBatch, Scalar, Scalars


def router_scalars(stats: RouterStats, cfg: ModelConfig, whole: GlobalBatch) -> Scalars:
    """`balance` and `z`, with their coefficients, as means over the step's micro-batches; and `max_load`, the tokens of
    the busiest expert over the mean of its layer (1 is even), for the log.

    stats: of the layers of this stage on this rank's tokens; the selection counts are summed over the ranks here.
    """
    ranks = whole.world.size
    if ranks > 1:
        stats = stats._replace(counts=whole.world.sum_tensor(stats.counts.clone()))
    tokens = stats.tokens * ranks
    with torch.no_grad():
        max_load = (stats.counts.amax(-1) / stats.counts.mean(-1)).amax()
    z = cfg.z_loss_coef * stats.log_z_squared.sum()
    return Scalars(
        balance=Scalar(balance_loss(stats, cfg, tokens), whole.micro_batches, loss=True),
        z=Scalar(z, tokens * whole.micro_batches, loss=True),
        max_load=Scalar(max_load, whole.micro_batches * ranks, stages="max"),
    )


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
