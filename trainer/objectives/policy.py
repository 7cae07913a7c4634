"""Policy gradient with two masked importance ratios.

    loss = -(1 / denominator)  sum over tokens t   sg(w_t) A_t log pi(y_t) + c H_t - b D_t

    rho  the ratio of the training engine to the rollout engine at equal weights: their arithmetic differs
    r    the ratio of the new to the old weights in the training engine: updates since the rollout
    w    dual: M(rho; alpha, beta) M(r; off_alpha, off_beta); joint: M(rho r; alpha, beta)
    M    M(x; a, b) = x where a < x < b, both strictly, else 0
    A    the advantage of the rollout (trainer.rl.groups)
    H    the entropy of the distribution that the token was drawn from; c is `rl.entropy_coef`
    D    an estimate of the divergence from a reference policy by this one token, with d = log pi - log reference: k3 is
         e^-d - 1 + d, k2 is d^2 / 2 (J. Schulman, Approximating KL Divergence, 2020); b is `rl.kl_coef`

Tokens that a mask, the veto or PPO's clips leave out get no gradient but that of H and D; the denominator counts them
or not as `rl.denominator` says. docs/rl.md has the sources of the form and of every default.

Legend: N tokens of a micro-batch · D documents, each a prompt with its rollout, or padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.share import Share
from trainer.config.rl.keys import Estimator, Level, RlConfig
from trainer.data.batch import IGNORE, Batch
from trainer.model.decoder import Decoder
from trainer.model.replay import Replay
from trainer.objectives.base import Objective
from trainer.objectives.log_probs import log_probs_and_entropies, token_log_probs
from trainer.objectives.scalars import GlobalBatch, Scalar, Scalars

MOST = 20.0  # log-ratios are cut to [-20, 20], so that no ratio is infinite
# bounds of the bins of mismatch/histogram: of log(train) - log(rollout) of a token
EDGES = (-1.0, -0.1, -0.01, -0.001, 0.001, 0.01, 0.1, 1.0)
SUM = "sum/"  # before the names of sums over tokens, which the record has as means


class Policy(Objective):
    """Batches have, in `extra`, [B, S] of labels: `advantages`; `rollout`, the log-probabilities of the rollout engine;
    `share`, one over the labels of the rollout; where there are several updates `old`, the log-probabilities under the
    weights of the rollout; with `rl.kl_coef` `reference`, those under the weights of the reference; where
    `rl.denominator` is kept, `kept`, True for labels that count. And in `inputs`, where
    routes are replayed or compared, `expert_ids` [B, S, L, K].

    compared: the routers' own selections and those that differ, as of `Replay`, over the micro-batches since it was
    last set to 0; None before the first. layers: whose experts batches have; None: all.
    share: the part of the tokens that this rank has.
    """

    unit = "token of a rollout"

    def __init__(self, cfg: RlConfig, chunk: int) -> None:
        self.cfg, self.chunk = cfg, chunk
        self.compared: Tensor | None = None
        self.layers: Sequence[int] | None = None
        self.share = Share()

    def count(self, batch: Batch) -> int:
        if self.cfg.denominator == "sequence":
            return round(float(batch.extra["share"].sum()))
        return int(batch.extra["kept"].sum()) if self.cfg.denominator == "kept" else batch.num_tokens

    def inputs(self, batch: Batch) -> dict[str, Any]:
        found = batch.model_inputs()
        ids = found.pop("expert_ids", None)
        if ids is not None:
            assert batch.labels is not None
            real = batch.extra["real"].flatten()
            use = self.cfg.replay == "replay"
            compared = self._counter(ids.device)
            found["expert_ids"] = Replay(ids.flatten(0, 1), use=use, real=real, compared=compared, layers=self.layers)
        return found

    def loss(self, model: Decoder, hidden: Tensor, batch: Batch, whole: GlobalBatch) -> Scalars:
        assert batch.labels is not None
        labels, extra = batch.labels.flatten(), {name: of.flatten() for name, of in batch.extra.items()}
        bonus = self.cfg.entropy_coef > 0
        log_probs, entropies = log_probs_and_entropies(model, hidden.flatten(0, 1), labels, self.chunk, bonus=bonus)
        new, there = log_probs.detach(), labels != IGNORE
        advantages = extra["advantages"]
        tokens = Tokens(new, extra.get("old", new), extra["rollout"], there, batch.cu_seqlens, self.share)
        weights, sums = weigh(tokens, advantages, self.cfg)
        terms = -(weights * advantages * log_probs)
        # means of entropies and divergences are over the tokens that the denominator counts
        counted = extra["kept"] if self.cfg.denominator == "kept" else there
        if bonus:
            terms = terms - self.cfg.entropy_coef * entropies * counted
        if self.cfg.kl_coef > 0:
            divergences, slopes = diverge((new - extra["reference"]).where(there, 0.0), self.cfg.kl_estimator)
            sums["kl/mean"] = divergences.sum()
            terms = terms + self.cfg.kl_coef * counted * (divergences + slopes * (log_probs - new))
        if self.cfg.denominator == "sequence":
            terms = terms * extra["share"]
        sums |= {"entropy": entropies.detach().sum(), **compare(tokens)}
        return Scalars(
            {f"{SUM}{name}": Scalar(value) for name, value in sums.items()},
            loss=Scalar(terms.sum(), whole.units, loss=True, per_unit=True),
            **{"mismatch/max": Scalar(tokens.gap.abs().amax(), micro_batches="max", ranks="max")},
        )

    def measure(self, model: Decoder, hidden: Tensor, batch: Batch) -> Scalars:
        """Nats of the reference answers."""
        assert batch.labels is not None
        found = token_log_probs(model, hidden.flatten(0, 1), batch.labels.flatten(), self.chunk)
        return Scalars(heldout=Scalar(-found.sum(), batch.num_tokens))

    def _counter(self, device: torch.device) -> Tensor:
        if self.compared is None:
            self.compared = torch.zeros(2, dtype=torch.float64, device=device)
        return self.compared


class Tokens:
    """Log-ratios of the tokens of a micro-batch; outside autograd.

    Args: new, old: [N] log-probabilities of the training engine under new and old weights. rollout: [N] those of the
        rollout engine. there: [N] True for tokens of rollouts. cu_seqlens: [D + 1] int32 on the CPU.
        share: the tokens are this part of those of the documents; then sums over documents are collective.
    gap, moved: [N] logs of rho and of r, 0 where there is no token of a rollout.
    """

    def __init__(
        self, new: Tensor, old: Tensor, rollout: Tensor, there: Tensor, cu_seqlens: Tensor, share: Share | None = None
    ) -> None:
        self.there, self.cu_seqlens, self.share = there, cu_seqlens, share or Share()
        self.gap, self.moved = ((a - b).where(there, 0.0).clamp_(-MOST, MOST) for a, b in ((old, rollout), (new, old)))

    @functools.cached_property
    def documents(self) -> Tensor:
        """[N] the number of each token's document."""
        positions = torch.arange(len(self.there) * self.share.ranks, dtype=self.cu_seqlens.dtype)
        whole = torch.searchsorted(self.cu_seqlens[1:], positions, right=True)
        return self.share.take(whole).to(self.there.device)

    def over_documents(self, values: Tensor) -> Tensor:
        """values [N] -> [N], the sum over each token's document."""
        sums = values.new_zeros(len(self.cu_seqlens) - 1).index_add_(0, self.documents, values)
        if self.share.group is not None:
            dist.all_reduce(sums, group=self.share.group)
        return sums[self.documents]

    def ratio(self, log: Tensor, level: Level) -> Tensor:
        """The ratio [N] of a token, or of its rollout."""
        if level != "token":
            log = self.over_documents(log)
            if level == "geometric":
                log = log / self.over_documents(self.there.to(log.dtype)).clamp_min(1)
        return log.clamp(-MOST, MOST).exp()


def weigh(tokens: Tokens, advantages: Tensor, cfg: RlConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weight w [N] of each token, 0 where there is no token of a rollout; and numbers of tokens, by the reason for
    which they are left out. advantages: [N]."""
    there, counts = tokens.there, dict[str, Tensor]()

    def masked(ratio: Tensor, low: float, high: float, name: str) -> Tensor:
        below, above = ratio <= low, ratio >= high
        counts[f"masked/{name}_low"], counts[f"masked/{name}_high"] = (below & there).sum(), (above & there).sum()
        return ratio.masked_fill(below | above, 0.0)

    r = tokens.ratio(tokens.moved, cfg.level)
    if cfg.mode == "dual":
        weights = masked(tokens.ratio(tokens.gap, cfg.level), cfg.alpha, cfg.beta, "mis")
        weights = weights * masked(r, cfg.off_alpha, cfg.off_beta, "off")
    else:
        weights = masked(tokens.ratio(tokens.gap + tokens.moved, cfg.level), cfg.alpha, cfg.beta, "joint")
    if (vetoed := _vetoed(tokens, cfg)) is not None:
        counts["masked/veto"] = (vetoed & there).sum()
        weights = weights.masked_fill(vetoed, 0.0)
    if (clipped := _clipped(r, advantages, cfg)) is not None:
        counts["masked/clip"] = (clipped & there).sum()
        weights = weights.masked_fill(clipped, 0.0)
    return weights.masked_fill(~there, 0.0), counts


def diverge(d: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Estimates [N] of a divergence, and their derivatives [N] in the log-probabilities of the policy. d: [N], log of
    policy over reference; it is cut to [-MOST, MOST]."""
    d = d.clamp(-MOST, MOST)
    return (d.square() / 2, d) if estimator == "k2" else (torch.expm1(-d) + d, -torch.expm1(-d))


def kept(tokens: Tokens, cfg: RlConfig) -> Tensor:
    """[N] True for tokens that the mask of the ratio of the engines and the veto leave: what `rl.denominator=kept`
    counts. It has to be known before the first gradient, so masks of r, and clips, do not matter."""
    rho = tokens.ratio(tokens.gap, cfg.level)
    found, vetoed = tokens.there & (cfg.alpha < rho) & (rho < cfg.beta), _vetoed(tokens, cfg)
    return found if vetoed is None else found & ~vetoed


def compare(tokens: Tokens) -> dict[str, Tensor]:
    """Sums over tokens of what is between the engines: d = log(train) - log(rollout)."""
    d, there = tokens.gap, tokens.there
    ratio = d.exp().where(there, 0.0)
    bins = torch.bucketize(d, torch.tensor(EDGES, dtype=d.dtype, device=d.device))
    counts = torch.zeros(len(EDGES) + 1, dtype=torch.float64, device=d.device).index_add_(0, bins, there.double())
    return {
        "mismatch/k1": -d.sum(),
        "mismatch/k3": (torch.expm1(d) - d).sum(),
        "mismatch/abs": d.abs().sum(),
        "ratio": ratio.sum(),
        "ratio_squared": ratio.square().sum(),
        **{f"bin_{number}": count for number, count in enumerate(counts.unbind())},
    }


def _vetoed(tokens: Tokens, cfg: RlConfig) -> Tensor | None:
    """[N] True for tokens of rollouts with a ratio of the engines outside the veto's bounds; None without a veto."""
    if cfg.veto_low is None and cfg.veto_high is None:
        return None
    ratio = tokens.gap.exp()
    low = 0.0 if cfg.veto_low is None else cfg.veto_low
    high = math.inf if cfg.veto_high is None else cfg.veto_high
    return tokens.over_documents((tokens.there & ((ratio < low) | (ratio > high))).to(ratio.dtype)) > 0


def _clipped(r: Tensor, advantages: Tensor, cfg: RlConfig) -> Tensor | None:
    """[N] True for tokens whose gradient PPO's clips make zero; None without a clip."""
    found = None
    for limit, outside in (
        (cfg.clip_high, lambda limit: (advantages > 0) & (r > 1 + limit)),
        (cfg.clip_low, lambda limit: (advantages < 0) & (r < 1 - limit)),
        (cfg.dual_clip, lambda limit: (advantages < 0) & (r > limit)),
    ):
        if limit is not None:
            found = outside(limit) if found is None else found | outside(limit)
    return found
