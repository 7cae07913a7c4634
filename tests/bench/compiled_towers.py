"""Two layers of each tower with torch.compile, on images and signals of several sizes, beside the same layers without.

A whole layer has the patches of each image in its graph, and is compiled again for other sizes. Its halves, before and
after attention, take any number of patches. Tiles of Intern-S1 have one size: a whole layer takes any number of them.

    python -m tests.bench.compiled_towers [--rounds 5] [--quick] [--layers vision,signals,tiles]

Figures are CPU time; the first round's includes the compilers that it ran. Ratios are medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch._dynamo
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.bench.step import cpu_name
from tests.bench.towers import SIGNALS, VISION, ratio, timed
from trainer.config.model import InternViTConfig, TimeSeriesConfig, VisionConfig
from trainer.model.numerics import rotary
from trainer.model.towers.intern_vit import InternViTLayer
from trainer.model.towers.parts import full_attention
from trainer.model.towers.time_series import TimeSeriesLayer, TimeSeriesTower
from trainer.model.towers.vision import VisionBlock, VisionTower

LENGTHS = [[256, 768], [280, 408, 256], [1200], [120, 324], [256, 256, 256], [64, 308]]  # of each of six batches
TILES = [[257] * tiles for tiles in (2, 4, 3)]
Step = Callable[[Tensor, list[int]], Tensor]  # a batch and its lengths -> gradients of all weights, in one vector


class Found(NamedTuple):
    """first: CPU-seconds of the first step of each batch. graphs: compiled for the first batch; later: for the others.
    over_eager: the time of a step over that of the same layers as they are. difference: of their gradients, the largest
    relative one."""

    first: float
    graphs: int
    later: int
    over_eager: float
    difference: float


def compiled(make: Callable[[int, str], Step], width: int, part: str, sizes: Sequence[list[int]], rounds: int) -> Found:
    """part: "whole" or "halves". sizes: the lengths of each batch."""
    torch._dynamo.reset()
    counters.clear()
    torch._inductor.config.force_disable_caches = True  # an earlier run's graphs would cost nothing
    torch._inductor.config.compile_threads = 1  # so that compilers are processes of this one, and their time is counted
    fast, eager = make(width, part), make(width, "")
    batches = [(torch.randn(sum(lengths), width), lengths) for lengths in sizes]
    spent, graphs = cpu_seconds(), []
    for batch in batches:
        fast(*batch)
        graphs.append(counters["stats"]["unique_graphs"])
    first = cpu_seconds() - spent
    pairs = [(fast(*batch), eager(*batch)) for batch in batches]
    arms = {"fast": lambda: [fast(*b) for b in batches], "eager": lambda: [eager(*b) for b in batches]}
    over_eager = ratio(timed(arms, rounds), "fast", "eager")
    difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return Found(first, graphs[0], graphs[-1] - graphs[0], over_eager, difference)


def cpu_seconds() -> float:
    """CPU-seconds of this process, and of the compilers that it ran."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def vision_layers(width: int, compiled: str) -> Step:
    cfg = VisionConfig(**VISION | {"width": width, "num_heads": width // 64, "mlp_width": 4 * width}, num_layers=2)
    tower = VisionTower(cfg)

    def before(block: VisionBlock, x: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        qkv = block.attention.qkv(block.attention_norm(x)).unflatten(-1, (3, block.attention.heads, -1))
        return [*rotary(qkv[:, :2], cos, sin).unbind(1), qkv[:, 2]]

    def after(block: VisionBlock, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.attention.out(attended)
        return x + block.down(F.gelu(block.up(block.mlp_norm(x)), approximate="tanh"))

    def attend(qkv: list[Tensor], lengths: list[int]) -> Tensor:
        return full_attention(*qkv, lengths).flatten(1)

    def tables(lengths: list[int], x: Tensor) -> tuple[Tensor, ...]:
        return tower._rotary([(2, length // 2) for length in lengths], x)

    return of_layers(tower.blocks, compiled, before, attend, after, tables)


def signal_layers(width: int, compiled: str) -> Step:
    cfg = TimeSeriesConfig(**SIGNALS | {"width": width, "num_layers": 2})

    def before(layer: TimeSeriesLayer, x: Tensor) -> list[Tensor]:
        y = layer.attention_norm(x)
        return [layer.q(y), layer.k(y), layer.v(y)]

    def after(layer: TimeSeriesLayer, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.out(attended)
        return x + layer.down(F.gelu(layer.up(layer.mlp_norm(x))))

    def attend(qkv: list[Tensor], lengths: list[int]) -> Tensor:
        parts = zip(
            *(x[None].unflatten(-1, (cfg.num_heads, -1)).transpose(1, 2).split(lengths, 2) for x in qkv), strict=True
        )
        found = [F.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
        return torch.cat([part.transpose(1, 2).flatten(2)[0] for part in found])

    return of_layers(TimeSeriesTower(cfg).layers, compiled, before, attend, after, lambda *_: ())


def tile_layers(width: int, compiled: str) -> Step:
    cfg = InternViTConfig(
        width=width, num_layers=2, num_heads=width // 128, mlp_width=4 * width, channels=3, tile_size=224,
        patch_size=14, merge=2, out_width=4096,
    )  # fmt: skip
    layers = nn.ModuleList(InternViTLayer(cfg) for _ in range(cfg.num_layers))

    def any_number(layer: InternViTLayer, x: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(x, 0)
        return whole(layer, x)

    whole = torch.compile(InternViTLayer.forward)
    run = any_number if compiled else InternViTLayer.forward
    draw(layers)

    def step(x: Tensor, lengths: list[int]) -> Tensor:
        layers.zero_grad()
        y = x.view(len(lengths), lengths[0], width)
        for layer in layers:
            y = run(layer, y)
        y.backward(torch.ones_like(y))
        return gradients(layers)

    return step


def draw(layers: nn.ModuleList) -> None:
    for number, weight in enumerate(layers.parameters()):
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(number))


def gradients(layers: nn.ModuleList) -> Tensor:
    return torch.cat([p.grad.flatten() for p in layers.parameters() if p.grad is not None])


def of_layers(
    layers: nn.ModuleList,
    compiled: str,
    before: Callable[..., list[Tensor]],
    attend: Callable[[list[Tensor], list[int]], Tensor],
    after: Callable[..., Tensor],
    tables: Callable[[list[int], Tensor], tuple[Tensor, ...]],
) -> Step:
    """Forward and backward of the layers. compiled: "whole", or "halves" (`before` and `after`, which with `attend` do
    what the layers do), or nothing."""
    draw(layers)
    if compiled == "whole":
        whole = [torch.compile(layer.forward, dynamic=False) for layer in layers]
    if compiled == "halves":
        before, after = torch.compile(before), torch.compile(after)

    def any_length(*tensors: Tensor) -> tuple[Tensor, ...]:
        for tensor in tensors:
            torch._dynamo.mark_dynamic(tensor, 0)
        return tensors

    def step(x: Tensor, lengths: list[int]) -> Tensor:
        layers.zero_grad()
        of_all = tables(lengths, x)
        for number, layer in enumerate(layers):
            if compiled == "halves":
                attended = attend(before(layer, *any_length(x, *of_all)), lengths)
                x = after(layer, *any_length(x, attended))
            else:
                x = (whole[number] if compiled else layer)(x, *of_all, lengths)
        x.backward(torch.ones_like(x))
        return gradients(layers)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="halves only, 1 round")
    parser.add_argument("--layers", default="vision,signals,tiles")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu_name()}, {os.cpu_count()} cores, 1 thread", flush=True)
    print(
        "| layers | compiled | sizes | first steps, CPU s | graphs | graphs of later sizes | over eager | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, make, width, of_part in (
        ("vision", vision_layers, 1024, {"halves": LENGTHS, "whole": LENGTHS[:2]}),
        ("signals", signal_layers, 768, {"halves": LENGTHS, "whole": LENGTHS[:2]}),
        ("tiles", tile_layers, 512, {"whole": TILES}),
    ):
        if name not in args.layers.split(","):
            continue
        for part, sizes in of_part.items():
            if not (args.quick and part == "whole"):
                found = compiled(make, width, part, sizes, 1 if args.quick else args.rounds)
                print(
                    f"| {name}, {width} wide | {part} | {len(sizes)} | {found.first:.0f} | {found.graphs} "
                    f"| {found.later} | {found.over_eager:.2f} | {found.difference:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
