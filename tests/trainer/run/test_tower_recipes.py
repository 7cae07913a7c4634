"""Precision and recompute of towers, in models built as runs build them: the dtypes of every product of matrices, and
the bytes that a pass through a tower keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.memory import kept
from parallel.memory.live import LiveBytes, Peak
from parallel.world import World
from tests.trainer.live_run import SMALL
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, TILES, VISION
from tests.trainer.tiny_run import tiny_config
from trainer.config.compose import compose, list_groups
from trainer.config.keys import Config
from trainer.model.experts.choose import choose_backend
from trainer.model.multimodal import Multimodal
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images
from trainer.objectives.choose import build_objective
from trainer.run import build

LAYERS = 6
# Tower -> how the model gets it, and media that it takes.
TOWERS = {
    "vision": (
        {"vision": replace(VISION, num_layers=LAYERS), "image_token": IMAGE},
        Images(torch.arange(2048.0).view(512, 4).sin(), [(16, 32)]),
    ),
    "tiles": (
        {"vision": replace(TILES, tile_size=16, num_layers=LAYERS), "image_token": IMAGE},
        torch.arange(2048.0).view(8, 1, 16, 16).sin(),
    ),
    "signals": (
        {
            "signals": replace(SIGNALS, width=64, mlp_width=256, positions=256, num_layers=LAYERS),
            "signal_token": SIGNAL,
        },
        [Signal(torch.arange(2000.0)[:, None].sin(), 1.0)],
    ),
}


def config(tower: str, recompute: str = "none", precision: str = "fp32", offload: bool = False) -> Config:
    model = {"hidden_size": 16, "num_layers": 1, **TOWERS[tower][0]}
    cfg = tiny_config("unused", model=model, recompute=recompute, offload_activations=offload)
    cfg.precision = compose(["recipe=toy", f"precision={precision}"]).precision
    return cfg


def embed(cfg: Config, tower: str) -> tuple[Multimodal, Callable[[], Tensor]]:
    model = build.build_model(cfg, World(), None, build_objective(cfg.train))
    assert isinstance(model, Multimodal)
    module = model.signals if tower == "signals" else model.vision

    assert module is not None

    def run() -> Tensor:
        with model._arithmetic():
            embeddings: Tensor = module(TOWERS[tower][1])
        return embeddings

    return model, run


def kept_bytes(tower: str, recompute: str, offload: bool = False) -> tuple[Peak, dict[str, Tensor]]:
    """The peak of a forward and backward pass, with weights and gradients apart; and the gradients."""
    model, run = embed(config(tower, recompute, offload=offload), tower)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as alive:
        alive.label("weights", [*parameters.values(), *model.buffers()])
        alive.label("gradients", [p.grad for p in parameters.values() if p.grad is not None])
        run().square().sum().backward()
    return alive.peak(), {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("tower", TOWERS)
def test_recompute_keeps_fewer_bytes_and_changes_no_gradient(tower):
    (plain, expected), (selective, once), (full, again) = (
        kept_bytes(tower, recompute) for recompute in ("none", "selective", "full")
    )
    assert full.activations < 0.4 * plain.activations
    assert full.activations < selective.activations < 0.8 * plain.activations
    assert any(grad.any() for grad in expected.values())
    for name, grad in expected.items():
        assert torch.equal(once[name], grad), name
        assert torch.equal(again[name], grad), name


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("tower", TOWERS)
def test_offloading_keeps_what_layers_keep_on_the_host_and_changes_no_gradient(monkeypatch, tower, recompute):
    monkeypatch.setattr(kept, "LEAST", SMALL)
    (here, expected), (away, found) = (kept_bytes(tower, recompute, offload) for offload in (False, True))
    assert here.host == 0 < away.host
    assert here.activations - away.activations > away.host / 2  # two of the layers' are on the device at a time
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name


class Products(TorchDispatchMode):
    """The dtypes of the floats that go into products of matrices and convolutions, and of all other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.convolutions: set[torch.dtype] = set()
        self.others: set[torch.dtype] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        name = op.overloadpacket.__name__
        flat = torch.utils._pytree.tree_leaves((args, result))
        dtypes = {x.dtype for x in flat if isinstance(x, Tensor) and x.is_floating_point()}
        if name in ("mm", "addmm", "bmm") or "attention" in name:
            self.products |= dtypes
        elif "convolution" in name:
            self.convolutions |= dtypes
        self.others |= dtypes
        return result


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", list_groups()["precision"])
def test_a_tower_computes_in_the_dtype_of_linears_whatever_the_experts_do(monkeypatch, tower, name):
    # Transformer Engine's experts are not built: they take no part in a tower.
    monkeypatch.setattr(build, "choose_backend", lambda _, *rest, **options: choose_backend("fp32", *rest, **options))
    cfg = config(tower, precision=name)
    model, run = embed(cfg, tower)
    with Products() as ran:
        run().float().square().sum().backward()
    linears = {"bf16": torch.bfloat16, "fp32": torch.float32}[cfg.precision.linears]
    assert linears in ran.products
    attended = {torch.float32} if linears == torch.bfloat16 else set()  # log-sums of attention
    assert ran.products <= {linears} | attended
    assert ran.convolutions == ({torch.float32} if tower == "signals" else set())
    assert ran.others <= {linears, torch.float32, torch.float64}
    weights = [p for n, p in model.named_parameters() if n.startswith(("vision.", "signals."))]
    assert {p.dtype for p in weights} == {p.grad.dtype for p in weights if p.grad is not None} == {torch.float32}
