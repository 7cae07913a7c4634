"""The towers and the preparation of their media, on one CPU thread, beside transformers.

    python -m tests.bench.towers [--sections images,vision,memory] [--rounds 5] [--quick]     (make bench-towers)

images: from a file to patches (`PatchRule`), beside transformers' Qwen2VLImageProcessor without torchvision, whose
    pixels are compared first: the part after decoding, and the whole.
vision: forward and backward of Intern-S1-Pro's vision tower, 1024 wide, on images of mixed sizes, beside transformers'
    Qwen3-VL module (SDPA, image by image) with the same sizes, and beside the tower's matrix products alone
    (attention's as dense batched ones, as in `tests/bench/step.py`).
memory: forward and backward of the published time-series tower on signals of several lengths: the largest sum of the
    tensors that are alive, beside weights and gradients.

Arms take turns in one process; figures are CPU time, ratios are medians of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from parallel.memory.live import LiveBytes
from parallel.torch_private import FakeTensorMode
from tests.bench.step import cpu_name
from trainer.config.model import TimeSeriesConfig, VisionConfig
from trainer.data.media.images import PatchRule, decode
from trainer.data.media.signals import SignalRule
from trainer.model.towers.time_series import Signal, TimeSeriesTower
from trainer.model.towers.vision import Images, VisionTower
from trainer.run.host_memory import prepare_host_memory

# Intern-S1-Pro's, with fewer layers
VISION: dict[str, Any] = {
    "width": 1024, "num_heads": 16, "mlp_width": 4096, "channels": 3, "frames": 2, "patch_size": 16, "merge": 2,
    "position_side": 48, "out_width": 4096,
}  # fmt: skip
SIGNALS: dict[str, Any] = {
    "bins": 80, "width": 768, "num_layers": 17, "num_heads": 8, "mlp_width": 3072, "positions": 1500,
    "adapt_width": 1024, "out_width": 4096,
}  # fmt: skip
GRIDS = [(16, 16), (24, 32), (40, 30), (20, 14), (12, 34)]  # 256 to 1200 patches
PICTURES = [(768, 1024), (513, 700), (1080, 1920), (300, 200), (480, 640), (1000, 333)]


def timed(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of every round, after one to warm up, by arm."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in arms if number % 2 else reversed(arms):
            start = time.process_time()
            arms[name]()
            if number:
                taken[name].append(time.process_time() - start)
    return taken


def ratio(taken: Mapping[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(taken[over], taken[under], strict=True))


def images(*, quick: bool, rounds: int) -> dict[str, float]:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rule = PatchRule()
    size = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
    theirs = Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=rule.mean, image_std=rule.std)
    files = [jpeg(*picture) for picture in PICTURES[: 2 if quick else None]]

    def opened(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    pixels = [decode(data, where="a picture", max_pixels=1 << 26) for data in files]
    loaded = [opened(data) for data in files]
    for array, image in zip(pixels, loaded, strict=True):
        assert np.array_equal(rule.prepare(array)[0], theirs(image)["pixel_values"]), "other pixels"
    taken = timed(
        {
            "ours, decoded": lambda: [rule.prepare(array) for array in pixels],
            "theirs, decoded": lambda: [theirs(image) for image in loaded],
            "ours": lambda: [rule.prepare(decode(data, where="a picture", max_pixels=1 << 26)) for data in files],
            "theirs": lambda: [theirs(opened(data)) for data in files],
        },
        rounds,
    )
    found = {
        "after decoding": ratio(taken, "theirs, decoded", "ours, decoded"),
        "with decoding": ratio(taken, "theirs", "ours"),
    }
    print("| images | Octavo ms | transformers ms | ratio |")
    print("|---|---|---|---|")
    for name, (mine, peer) in {
        "after decoding": ("ours, decoded", "theirs, decoded"), "with decoding": ("ours", "theirs")
    }.items():  # fmt: skip
        ms = [statistics.median(taken[arm]) / len(files) * 1e3 for arm in (mine, peer)]
        print(f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} | {found[name]:.2f}x |", flush=True)
    return found


def jpeg(height: int, width: int) -> bytes:
    """A picture whose detail is between a photograph's and noise."""
    from PIL import Image

    random = np.random.default_rng([height, width])
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def vision(*, quick: bool, rounds: int) -> dict[str, float]:
    prepare_host_memory()
    cfg = VisionConfig(**VISION, num_layers=1 if quick else 2)
    grids = GRIDS[:1] + GRIDS[3:4] if quick else GRIDS
    arms = {"octavo": our_step(cfg, grids), "transformers": their_step(cfg, grids), "products": products(cfg, grids)}
    taken = timed(arms, rounds)
    found = {
        "over its products": ratio(taken, "octavo", "products"),
        "against transformers": ratio(taken, "transformers", "octavo"),
    }
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    print("| vision tower | patches | Octavo s | transformers s | products alone s | over its products | ratio |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {cfg.num_layers} layers, {cfg.width} wide | {sum(rows * columns for rows, columns in grids)} | "
        + " | ".join(f"{seconds[arm]:.2f}" for arm in arms)
        + f" | {found['over its products']:.2f} | {found['against transformers']:.2f}x |",
        flush=True,
    )
    return found


def drawn(cfg: VisionConfig, grids: list[tuple[int, int]]) -> torch.Tensor:
    patches = sum(rows * columns for rows, columns in grids)
    return torch.randn(patches, cfg.channels * cfg.frames * cfg.patch_size**2)


def our_step(cfg: VisionConfig, grids: list[tuple[int, int]]) -> Callable[[], None]:
    model, given = VisionTower(cfg), Images(drawn(cfg, grids), grids)
    torch.nn.init.normal_(model.positions)
    torch.nn.init.normal_(model.patch.weight, std=0.02)
    torch.nn.init.zeros_(model.patch.bias)

    def step() -> None:
        model.zero_grad()
        out = model(given)
        out.backward(torch.ones_like(out))

    return step


def their_step(cfg: VisionConfig, grids: list[tuple[int, int]]) -> Callable[[], None]:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    model = Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=cfg.num_layers, hidden_size=cfg.width, intermediate_size=cfg.mlp_width, num_heads=cfg.num_heads,
            in_channels=cfg.channels, patch_size=cfg.patch_size, temporal_patch_size=cfg.frames,
            spatial_merge_size=cfg.merge, out_hidden_size=cfg.out_width, deepstack_visual_indexes=[],
            num_position_embeddings=cfg.position_side**2, hidden_act="gelu_pytorch_tanh", attn_implementation="sdpa",
        )
    )  # fmt: skip
    pixels, sizes = drawn(cfg, grids), torch.tensor([(1, *grid) for grid in grids])

    def step() -> None:
        model.zero_grad()
        out = model(pixels, sizes).pooler_output
        out.backward(torch.ones_like(out))

    return step


def products(cfg: VisionConfig, grids: list[tuple[int, int]]) -> Callable[[], None]:
    """Forward, input-gradient and weight-gradient products of a step into tensors that are there; pixels need no
    gradient. Weights and their gradients are tensors of their own, activations the layers share."""
    patches, W = sum(rows * columns for rows, columns in grids), cfg.width
    blocks, merged = patches // cfg.merge**2, cfg.merge**2 * W
    shapes = [(patches, W, 3 * W), (patches, W, W), (patches, W, cfg.mlp_width), (patches, cfg.mlp_width, W)]
    shapes = shapes * cfg.num_layers + [(blocks, merged, merged), (blocks, merged, cfg.out_width)]
    wide: dict[tuple[int, int], torch.Tensor] = {}
    done: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for rows, into, out in [(patches, cfg.channels * cfg.frames * cfg.patch_size**2, W), *shapes]:
        x, y = (wide.setdefault((rows, size), torch.randn(rows, size)) for size in (into, out))
        weight = torch.randn(out, into)
        done += [(x, weight.t(), torch.empty_like(y)), (y.t(), x, torch.empty_like(weight))]
        if len(done) > 2:  # not for the pixels
            done.append((y, weight, torch.empty_like(x)))
    heads = [
        (torch.randn(cfg.num_heads, size, W // cfg.num_heads), torch.empty(cfg.num_heads, size, size))
        for size in (rows * columns for rows, columns in grids)
    ]
    outs = [torch.empty_like(q) for q, _ in heads]

    def step() -> None:
        for a, b, result in done:
            torch.mm(a, b, out=result)
        for _ in range(3 * cfg.num_layers):  # forward; then the gradients of both products
            for (q, scores), out in zip(heads, outs, strict=True):
                torch.bmm(q, q.transpose(1, 2), out=scores)
                torch.bmm(scores, q, out=out)

    return step


def memory(*, quick: bool, rounds: int) -> dict[str, float]:
    """Megabytes of one signal; they do not vary, and are counted on tensors without memory."""
    del rounds
    found = {}
    print("| steps | rate, Hz | stride | tokens | peak MB |")
    print("|---|---|---|---|---|")
    for rate in (500.0,) if quick else (1.0, 500.0, 16_000.0):
        for steps in (24_000, 240_000) if quick else (24_000, 240_000, 1_000_000):
            stride, tokens = SignalRule().stride(steps, rate), SignalRule().tokens(steps, rate)
            found[f"{steps} steps at {rate:g} Hz"] = peak = signal_bytes(steps, rate, stride) / 1e6
            print(f"| {steps:,} | {rate:g} | {stride} | {tokens} | {peak:.0f} |", flush=True)
    return found


def signal_bytes(steps: int, rate: float, stride: int | None, **sizes: Any) -> int:
    """The most bytes of live tensors, but for weights and gradients, of forward and backward on one signal."""
    with FakeTensorMode():
        model, signal = TimeSeriesTower(TimeSeriesConfig(**SIGNALS | sizes)), torch.empty(steps, 1)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        with LiveBytes() as alive:
            alive.label("weights", [*parameters, *model.buffers()])
            alive.label("gradients", [parameter.grad for parameter in parameters if parameter.grad is not None])
            out = model([Signal(signal, rate, stride)])
            out.backward(torch.ones_like(out))
    return alive.peak().activations


SECTIONS: dict[str, Callable[..., dict[str, float]]] = {"images": images, "vision": vision, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, 1 round")
    args = parser.parse_args()
    unknown = set(args.sections.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; use {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    print(f"{cpu_name()}, {os.cpu_count()} cores, 1 thread", flush=True)
    for name in args.sections.split(","):
        SECTIONS[name](quick=args.quick, rounds=1 if args.quick else args.rounds)


if __name__ == "__main__":
    main()
