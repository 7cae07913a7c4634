"""Moments on the host: the same bits as on the device, in steps and in checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import losses, tiny_config
from trainer.checkpoint.slices import StoredState
from trainer.config.keys import OptimConfig, ParallelConfig
from trainer.optim import host_adamw
from trainer.optim.native import NativeEngine
from trainer.run.process import train


def steps(offload: str, moments: torch.dtype | None, device: str = "cpu") -> list[torch.Tensor]:
    """Weights and moments after five steps, and the third is not finite."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 9), nn.LayerNorm(9), nn.Linear(9, 3, bias=False)).to(device)
    cfg = OptimConfig(offload=offload, lr=0.05, clip_norm=0.5, weight_decay=0.3)
    engine = NativeEngine(model, cfg, World(torch.device(device)), moments=moments)
    engine.prepare()
    for step in range(1, 6):
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(step)).to(device)
        engine.backward(model(x).square().sum() * (float("nan") if step == 3 else 1.0))
        engine.step(step, 5)
    return [tensor.detach().cpu().clone() for tensor in (*model.parameters(), *engine.state().values())]


@pytest.mark.parametrize("moments", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_steps_are_bitwise_those_of_moments_on_the_device(moments, monkeypatch):
    monkeypatch.setattr(host_adamw, "PIECE", 64)  # the first weight is cut, and every slot is used several times
    expected, found = steps("none", moments), steps("cpu", moments)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("moments", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_steps_are_bitwise_those_of_moments_on_a_gpu(moments, monkeypatch):
    monkeypatch.setattr(host_adamw, "PIECE", 64)
    expected, found = steps("none", moments, "cuda"), steps("cpu", moments, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def run(directory: str, **keys) -> int:
    cfg = tiny_config(directory, global_batch=8, micro_batch=1, **keys)
    cfg.parallel = ParallelConfig(dp_shard=4, ep=2)
    return train(cfg)


def in_turns(directory: str, offloads: tuple[str, str]) -> list[int]:
    """Half of the run with moments in one place, the rest in the other."""
    return [run(directory, offload=place, steps=end) for place, end in zip(offloads, (2, 4), strict=True)]


def test_experts_on_ranks_and_sharded_weights_train_and_resume_bitwise_the_same(tmp_path: Path):
    on_ranks(4, in_turns, str(tmp_path / "device"), ("none", "none"), timeout_s=120)
    on_ranks(4, in_turns, str(tmp_path / "host"), ("cpu", "none"), timeout_s=120)
    assert losses(tmp_path / "host") == losses(tmp_path / "device")
    states = [StoredState(tmp_path / name / "checkpoints" / "step-2") for name in ("device", "host")]
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name in ("optim.layers.1.moe.experts.w2.exp_avg_sq", "optim.lm_head.exp_avg"):
        box = tuple(slice(0, size) for size in states[0].shape(name) or ())
        assert torch.equal(states[0].read(name, box), states[1].read(name, box))
