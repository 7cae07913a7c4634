"""Precision and recompute of towers, in models built as runs build them: the dtypes of every product of matrices, and
the bytes that a pass through a tower keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.memory.live import LiveBytes
from parallel.world import World
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


def config(tower: str, recompute: str = "none", precision: str = "fp32") -> Config:
    cfg = tiny_config("unused", model={"hidden_size": 16, "num_layers": 1, **TOWERS[tower][0]}, recompute=recompute)
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


def kept_bytes(tower: str, recompute: str) -> tuple[int, dict[str, Tensor]]:
    """The most bytes of a forward and backward pass beside weights and gradients; and the gradients."""
    model, run = embed(config(tower, recompute), tower)
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as alive:
        alive.label("weights", [*parameters.values(), *model.buffers()])
        alive.label("gradients", [p.grad for p in parameters.values() if p.grad is not None])
        run().square().sum().backward()
    return alive.peak().activations, {name: p.grad for name, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("tower", TOWERS)
def test_recompute_keeps_fewer_bytes_and_changes_no_gradient(tower):
    (plain, expected), (selective, once), (full, again) = (
        kept_bytes(tower, recompute) for recompute in ("none", "selective", "full")
    )
    assert full < 0.4 * plain
    assert full < selective < 0.8 * plain
    assert any(grad.any() for grad in expected.values())
    for name, grad in expected.items():
        assert torch.equal(once[name], grad), name
        assert torch.equal(again[name], grad), name


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
    monkeypatch.setattr(build, "choose_backend", lambda _, *rest: choose_backend("fp32", *rest))
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
