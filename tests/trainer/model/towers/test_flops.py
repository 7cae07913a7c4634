"""The FLOPs that configurations of towers count against those of the operations that run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.model.tiny import model_config
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, TILES, VISION
from trainer.model.multimodal import make_towers
from trainer.model.towers.flops import tower_flops
from trainer.model.towers.places import signal_tokens
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images

WIDE = {"width": 32, "mlp_width": 96, "num_layers": 3}
IMAGES = Images(torch.arange(4.0 * (32 + 96)).view(-1, 4).sin(), [(4, 8), (8, 12)])
SIGNALS_GIVEN = [
    Signal(torch.arange(600.0)[:, None].sin(), 20.0, 6),
    Signal(torch.arange(1200.0).view(400, 3).sin(), 20.0, 6),
]
# Tower -> keys of the model, images, signals
TOWERS = {
    "vision": ({"vision": replace(VISION, **WIDE), "image_token": IMAGE}, IMAGES, ()),
    "tiles": (
        {"vision": replace(TILES, tile_size=16, **WIDE), "image_token": IMAGE},
        torch.arange(768.0).view(3, 1, 16, 16).sin(),
        (),
    ),
    "signals": ({"signals": replace(SIGNALS, **WIDE), "signal_token": SIGNAL}, None, SIGNALS_GIVEN),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_flops_of_media_are_those_of_the_operations_that_run(tower):
    """Torch counts all scores of causal attention, and no gradient of pixels or values."""
    keys, images, signals = TOWERS[tower]
    cfg = model_config(hidden_size=16, **keys)
    module = make_towers(cfg)["signals" if tower == "signals" else "vision"]
    assert module is not None
    for values in (*module.parameters(), *module.buffers()):
        values.data.fill_(0.01)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(signals if tower == "signals" else images).square().sum().backward()
    expected = counter.get_total_flops()
    if cfg.signals is not None:
        for tokens in signal_tokens(signals):
            expected -= 12 * cfg.signals.num_layers * cfg.signals.width * tokens * (tokens - (tokens + 1) / 2)
    assert tower_flops(cfg, images, signals) == pytest.approx(expected, rel=0.03)
