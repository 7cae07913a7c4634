"""The FLOPs of a step, in closed form. No torch here."""

from __future__ import annotations

from trainer.config.keys import Config


def arithmetic(cfg: Config) -> str:
    """The FLOPs of one step over all ranks, as text: the model's and, with Muon, those of the Newton-Schulz iterations,
    which run once for each matrix."""
    model = cfg.train.global_batch * cfg.data.seq_len * cfg.model.flops_per_token(cfg.data.seq_len)
    text = f"{model:.3g} FLOPs a step, without recomputation"
    if cfg.optim.name != "muon":
        return text
    iterations = cfg.model.newton_schulz_flops(cfg.optim.ns_steps)
    return f"{text}; Newton-Schulz {iterations:.3g}, {iterations / model:.2%} of them"
