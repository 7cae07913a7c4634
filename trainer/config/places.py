"""The places of one rank's bytes when weights or state are offloaded: device and host. No torch here.

Counted from what the engines allocate: the native one keeps moments on the host (`trainer/optim/host_adamw.py`),
DeepSpeed what `parallel/zero/` asks of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.keys import Config

# As in `HostAdamW`: elements that are updated at one time, and how many such pieces have room on the device.
PIECE, SLOTS = 16 << 20, 3


@dataclass(frozen=True)
class Held:
    """Bytes of the weights, gradients and optimizer state of one rank, wherever they are; host: those of them on the
    host. buffers: on the device on top, for gathered weights and for pieces of the state. starting: on the host while
    the weights are made."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0
    buffers: int = 0
    starting: int = 0


def on_host(weights: int, gradients: int, optimizer: int, moments: int) -> Held:
    """The native engine with optim.offload=cpu. Bytes; moments: of the optimizer's, those of the moments."""
    elements = weights // 4
    room = SLOTS * min(PIECE, elements) * (moments // max(elements, 1))
    return Held(weights, gradients, optimizer, host=moments, buffers=room)


def by_deepspeed(cfg: Config, elements: int, trained: int, world_size: int) -> Held:
    """DeepSpeed's ZeRO, whose ranks all have equal parts. elements, trained: weights of the model, and those with a
    gradient."""
    stage, offload, params = cfg.optim.zero_stage, cfg.optim.offload, cfg.optim.offload_params
    part = 4 * elements // world_size
    moments = 2 * part
    if stage < 3:
        gradients = 4 * trained // (world_size if stage == 2 else 1)
        optimizer = moments + part  # fp32 weights a second time
        if offload == "none":
            return Held(4 * elements, gradients, optimizer)
        return Held(4 * elements, gradients + part, optimizer, host=optimizer + part)
    m = cfg.model
    root = (2 * m.vocab_size + 1) * m.hidden_size  # gathered from step to step
    layer = (elements - root) // m.num_layers
    buffers = 4 * (root + 3 * layer)  # a layer, the next one, and the gradient of one
    starting = 4 * elements
    if offload == "none":
        return Held(part, part, moments, buffers=buffers, starting=starting)
    twice = 0 if params == "cpu" else part  # fp32 weights on the host besides those on the device
    host = 2 * part + moments
    return Held(part + twice, part, moments, host=host, buffers=buffers, starting=starting)
