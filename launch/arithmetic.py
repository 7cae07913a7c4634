"""The FLOPs of a step, in closed form. No torch here."""

from __future__ import annotations

from trainer.config.keys import Config
from trainer.config.model import VisionConfig
from trainer.config.ranks import most_windows


def arithmetic(cfg: Config) -> str:
    """The FLOPs of one step over all ranks, as text: the text model's; those of the image tower where the configuration
    bounds images; and with Muon those of the Newton-Schulz iterations, which run once for each matrix."""
    per_token = cfg.model.flops_per_token(cfg.data.seq_len, head=cfg.train.trains_head)
    model = most_windows(cfg) * cfg.data.seq_len * per_token
    towers = _towers(cfg)
    most = "at most " if cfg.train.objective == "policy" else ""
    text = f"{most}{model:.3g} FLOPs a step{' in the text model' if towers else ''}, without recomputation{towers}"
    if cfg.optim.name != "muon":
        return text
    iterations = cfg.model.newton_schulz_flops(cfg.optim.ns_steps)
    whole = "the text model's" if towers else "them"
    return f"{text}; Newton-Schulz {iterations:.3g}, {iterations / model:.2%} of {whole}"


def _towers(cfg: Config) -> str:
    """The rest of the text about towers; empty for a model without any."""
    vision, data = cfg.model.vision, cfg.data
    if vision is None and cfg.model.signals is None:
        return ""
    if data.name != "pairs" or not isinstance(vision, VisionConfig):
        return "; those of images and signals depend on the data and are not counted"
    sizes = (pixels // (vision.patch_size * vision.merge) ** 2 for pixels in (data.min_pixels, data.max_pixels))
    least, most = (tokens * vision.flops_per_token(tokens * vision.merge**2) for tokens in sizes)
    batch = cfg.train.global_batch
    return f"; {batch * least:.3g} to {batch * most:.3g} in the image tower"
