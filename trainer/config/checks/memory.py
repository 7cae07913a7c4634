"""Ways to keep less for backward that do not work together."""

from __future__ import annotations

from parallel.errors import Fault, one_of
from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.config.keys import Config


def check(cfg: Config) -> list[Fault]:
    """Faults of `train.recompute`, `train.offload_activations` and `precision.kept`."""
    t, q, faults = cfg.train, cfg.precision, []
    if t.compile and t.recompute in ("attention", "experts"):
        of_blocks = ("none", "selective", "full")
        text = f"train.recompute={t.recompute} recomputes a part of a block, and train.compile=true compiles all of it"
        faults.append(
            Fault(f"{text}; use train.recompute={one_of(of_blocks)}", "train.recompute", t.recompute, of_blocks)
        )
    if t.offload_activations and q.experts in TRANSFORMER_ENGINE and t.recompute not in ("full", "experts"):
        fit = ("experts", "full")
        text = (
            f"train.offload_activations=true with train.recompute={t.recompute} cannot move what Transformer Engine "
            f"keeps (precision.experts={q.experts}); use train.recompute={one_of(fit)}, so that it keeps nothing"
        )
        faults.append(Fault(text, "train.recompute", t.recompute, fit))
    if t.offload_activations and cfg.parallel.regather:
        text = (
            "parallel.regather=true has no use with train.offload_activations=true, which moves the gathered hidden "
            "states; use parallel.regather=false"
        )
        faults.append(Fault(text, "parallel.regather", True, (False,)))
    if q.kept == "fp8" and q.experts in ("fp32", "bf16"):
        text = (
            f"precision.kept=fp8 rounds more than precision.experts={q.experts} does; use precision.kept=exact, or "
            "experts in FP8"
        )
        faults.append(Fault(text, "precision.kept", "fp8", ("exact",)))
    elif q.kept == "fp8" and t.recompute != "full":
        text = (
            "precision.kept=fp8 is a format of the inputs of blocks, which are all that is kept only with "
            f"train.recompute=full, not {t.recompute}; use train.recompute=full, or precision.kept=exact"
        )
        faults.append(Fault(text, "train.recompute", t.recompute, ("full",)))
    return faults
