"""The state of a run in a checkpoint, as one flat dictionary of names and tensors.

    model.<parameter or buffer>           weights, fp32
    optim.<parameter>.<moment or step>    the optimizer's state, keyed by the parameter's qualified name
    optim.skipped                         the counts of steps skipped for a gradient that was not finite
    rng.cpu.<rank>, rng.cuda.<rank>       torch's generators (nothing in training draws from them today)

The learning rate is a pure function of the step and the data position is one integer, so both stand in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.optim.engine import Engine


def training_tensors(stages: Sequence[nn.Module], engine: Engine, rank: int) -> dict[str, Tensor]:
    """The live tensors of the run by name: copied by a save, filled in place by a load (see `restore_generators`).

    stages: this rank's pipeline stages, whose parameters differ in name.
    """
    tensors = {f"model.{name}": tensor for stage in stages for name, tensor in engine.weights(stage).items()}
    tensors |= {f"optim.{name}": tensor for name, tensor in engine.state().items()}
    tensors[f"rng.cpu.{rank}"] = torch.get_rng_state()
    if next(stages[0].parameters()).device.type == "cuda":  # asking torch would start CUDA for a run on the CPU
        tensors[f"rng.cuda.{rank}"] = torch.cuda.get_rng_state()
    return tensors


def restore_generators(tensors: dict[str, Tensor], rank: int) -> None:
    """Set torch's generators from loaded `tensors`; their states are the one thing that cannot be filled in place."""
    torch.set_rng_state(tensors[f"rng.cpu.{rank}"])
    if f"rng.cuda.{rank}" in tensors:
        torch.cuda.set_rng_state(tensors[f"rng.cuda.{rank}"])
