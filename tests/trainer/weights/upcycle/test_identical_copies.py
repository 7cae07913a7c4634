"""Copies of an expert over a training: with noise they part, exact ones in equal groups never do; runs refuse them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.world import start_world
from tests.trainer.model.tiny import summed_loss
from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.upcycle.sources import checkpoint_of, expanded
from trainer.config.errors import ConfigError
from trainer.model.decoder import Decoder
from trainer.objectives.router import balance_loss
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.hf_read import from_huggingface
from trainer.weights.kept_source import open_published
from trainer.weights.upcycle.placement import CopyPlacement

SIZES = {
    "hidden_size": 16, "expert_width": 8, "num_experts": 8, "experts_per_token": 4, "num_layers": 1, "vocab_size": 32,
}  # fmt: skip
ASKED = {"factor": 2, "groups": 4}


def distances(model: Decoder, placement: CopyPlacement) -> Tensor:
    """||a - b|| / ||b|| of the two copies of each expert, over its matrices, and over its gate rows."""
    a, b = torch.tensor(placement.copies(0)).T
    moe = model.blocks[0].moe
    tables = (moe.experts.w13, moe.experts.w2, moe.router.weight)
    with torch.no_grad():
        return torch.stack([((t[a] - t[b]).flatten(1).norm(dim=1) / t[b].flatten(1).norm(dim=1)) for t in tables])


def train(model: Decoder, steps: int) -> float:
    """AdamW with the router's straight-through gradient and the balance loss; the last step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(0, 32, (4, 16), generator=generator)
        loss, stats = summed_loss(model, ids, (3 * ids + 1) % 32)
        loss = loss / ids.numel()
        (loss + balance_loss(stats, model.cfg, ids.numel())).backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize(
    ("asked", "grow"),
    [
        ({}, True),
        pytest.param({"noise": 0.0, "cuts": "distinct"}, True, marks=pytest.mark.slow),
        ({"noise": 0.0}, False),
    ],
)
def test_copies_part_over_200_steps_unless_they_are_exact_in_equal_groups(tmp_path, asked, grow):
    path = checkpoint_of(tmp_path / "source", **SIZES).write()
    made, placement = expanded(path, tmp_path / "out", **ASKED, **asked)
    model = from_huggingface(tmp_path / "out")
    assert model.cfg.router_gradient == "ste"
    before = distances(model, placement)
    started = train(model, 1)
    assert train(model, 199) < 0.8 * started
    after = distances(model, placement)
    assert made.facts["identical_copies"] != grow
    if grow:
        assert (after > before).all()
        assert after.mean() > 3 * before.mean()
    else:
        assert torch.equal(before, torch.zeros(3, 8))
        assert torch.equal(after, torch.zeros(3, 8))


def start(path: Path, run: Path, **checkpoint: Any) -> object:
    cfg = tiny_config(run)
    cfg.model = from_huggingface(path).cfg
    cfg.checkpoint.init_from = str(path)
    for key, value in checkpoint.items():
        setattr(cfg.checkpoint, key, value)
    world = start_world("cpu")
    try:
        return open_published(cfg, world)
    finally:
        world.close()


def test_a_run_refuses_copies_that_stay_identical_unless_allowed(tmp_path):
    path = checkpoint_of(tmp_path / "source", **SIZES).write()
    expanded(path, tmp_path / "exact", **ASKED, noise=0.0)
    with pytest.raises(ConfigError) as refused:
        start(tmp_path / "exact", tmp_path / "run")
    (fault,) = refused.value.faults
    assert (fault.where, fault.value) == ("checkpoint.init_from", str(tmp_path / "exact"))
    assert fault.allowed.endswith("or set checkpoint.allow_identical_copies=true")
    assert "\n" not in fault.text
    assert start(tmp_path / "exact", tmp_path / "run", allow_identical_copies=True) is not None
    expanded(path, tmp_path / "noisy", **ASKED)
    assert start(tmp_path / "noisy", tmp_path / "run") is not None
    expanded(path, tmp_path / "distinct", **ASKED, noise=0.0, cuts="distinct")
    assert start(tmp_path / "distinct", tmp_path / "run") is not None


@pytest.mark.parametrize("hashed", [True, False])
def test_an_edited_manifest_does_not_let_exact_copies_through(tmp_path, hashed):
    path = checkpoint_of(tmp_path / "source", **SIZES).write()
    expanded(path, tmp_path / "exact", **ASKED, noise=0.0)
    file = tmp_path / "exact" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["upcycle"]["identical_copies"] = False
    if not hashed:
        del manifest["manifest_sha256"]
    file.write_text(json.dumps(manifest))
    with pytest.raises(HuggingFaceError) as refused:
        start(tmp_path / "exact", tmp_path / "run")
    assert refused.value.where == str(file)
    assert (refused.value.value is not None) == hashed  # the hash that it should have
    assert refused.value.allowed.endswith("checkpoint.allow_identical_copies=true")
    assert len(refused.value.lines) == 1
    assert start(tmp_path / "exact", tmp_path / "run", allow_identical_copies=True) is not None


@pytest.mark.parametrize("manifest", [{}, {"upcycle": None}, {"upcycle": []}, {"identical_copies": True}])
def test_manifests_that_say_nothing_of_copies_do_not_stop_a_run(tmp_path, manifest):
    path = checkpoint_of(tmp_path / "source", **SIZES).write()
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert start(path, tmp_path / "run") is not None
