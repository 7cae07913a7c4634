"""The places of one rank's bytes when weights or state are offloaded: device and host. No torch here.

Counted from what the engines allocate: the native one keeps moments on the host (`trainer/optim/host_adamw.py`),
DeepSpeed what `parallel/zero/` asks of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.keys import Config

# As in `HostAdamW`: elements that are updated at one time, and how many such pieces have room on the device.
PIECE, SLOTS = 16 << 20, 3
# As in `parallel/zero/partitioned.py`: the elements after which a sub-group ends, which it may exceed by a parameter.
SUB_GROUP = 100_000_000
# Of DeepSpeed, which reads a sub-group's weights, gradients and two moments into one of these each.
SWAP_BUFFERS = 4


@dataclass(frozen=True)
class Held:
    """Bytes of the weights, gradients and optimizer state of one rank, wherever they are; host: those of them on the
    host. stored: those in files on NVMe. buffers: on the device on top, for gathered weights and for pieces of the
    state. locked: on the host on top, for sub-groups of what is on NVMe. starting: on the host while the weights are
    made."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0
    stored: int = 0
    buffers: int = 0
    locked: int = 0
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
    if offload == "nvme":  # fp32 weights there besides those on the host or the device
        host = part + (part if params == "cpu" else 0)
        experts = 2 * m.num_experts * m.expert_width * m.hidden_size  # gate and up of a layer, in one parameter
        largest = max(experts, m.vocab_size * m.hidden_size) // world_size
        locked = SWAP_BUFFERS * 4 * min(max(SUB_GROUP, largest), elements // world_size)
        return Held(2 * part, part, moments, host, part + moments, buffers, locked, starting)
    twice = 0 if params == "cpu" else part  # fp32 weights on the host besides those on the device
    host = 2 * part + moments
    return Held(part + twice, part, moments, host=host, buffers=buffers, starting=starting)
