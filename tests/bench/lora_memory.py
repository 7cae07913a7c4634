"""The memory of a GPU that trains adapters of Intern-S1-Pro on eight H200s: a table for docs/lora_memory.md.

    python -m tests.bench.lora_memory                 # about nine minutes on one core
    python -m tests.bench.lora_memory --full RECIPE   # every layer of a recipe built: minutes

Each line is one rank of eight, built without memory or peers and taken through a step (`trainer.run.simulate`), with 3
and with 5 layers. All layers are alike, so what the two more add holds for the others; --full is the check of that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.run.simulate import simulate_rank

RECIPE = "lora_intern_s1_pro_8xh200"
GIB = 1 << 30
MEMORY = {"lora_intern_s1_8xh100": 80 * GIB, "lora_30b_1gpu": 80 * GIB}
H200, SPARE = 139 * GIB, 0.1
# H200 data sheet: PCIe Gen5 128 GB/s, the sum of both directions.
PCIE = 64e9
FEW, MORE = 3, 5  # layers
PARTS = ("forward", "backward", "optimizer")  # of a step

ADAPTERS = {
    "attention, rank 16": ["lora=attention"],
    "attention, rank 64": ["lora=attention", "lora.rank=64", "lora.alpha=128"],
    "experts, rank 4, bf16 moments": ["lora=experts", "precision.moments=bf16"],
    "all, rank 4": ["lora=all", "precision.moments=fp32"],
    "all, rank 4, bf16 moments": ["lora=all", "precision.moments=bf16"],
    "all, rank 8, bf16 moments": ["lora=all", "lora.rank=8", "precision.moments=bf16"],
    "all, rank 16, bf16 moments": ["lora=all", "lora.rank=16", "precision.moments=bf16"],
}
TOKENS = {
    "4,096": ["data.seq_len=4096"],
    "8,192": ["data.seq_len=8192"],
    "16,384": ["data.seq_len=16384"],
}
SHARED = ["parallel=cp8_ep8", "data.seq_len=32768", "train.micro_batch=2"]  # by the eight ranks


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step, and the most on the host."""

    weights: int
    adapters: int  # their gradients and moments
    gathered: int
    activations: int
    host: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.gathered + self.activations


def built(cfg: Config, ranks: int) -> list[Memory]:
    """The peak of each part of a step."""
    live = simulate_rank(cfg, ranks, 0).live
    peaks = (live.peak(part) for part in PARTS)
    return [Memory(p.weights, p.gradients + p.optimizer, p.gathered, p.activations, p.host) for p in peaks]


def largest(parts: Iterable[Memory]) -> Memory:
    return max(parts, key=lambda memory: memory.total)


def predicted(words: Sequence[str], recipe: str = RECIPE) -> Memory:
    """All layers, from a few of them."""
    ranks = 1 if recipe.endswith("_1gpu") else 8
    chosen = [f"recipe={recipe}", *words]
    layers = compose(chosen, world_size=ranks).model.num_layers
    few, more = (built(compose([*chosen, f"model.num_layers={n}"], world_size=ranks), ranks) for n in (FEW, MORE))
    rest = (layers - FEW) / (MORE - FEW)
    # Part by part: with few layers the gather at the start of a step needs more than the backward pass.
    return largest(
        Memory(*(round(a + (b - a) * rest) for a, b in zip(vars(x).values(), vars(y).values(), strict=True)))
        for x, y in zip(few, more, strict=True)
    )


def verdict(total: int, memory: int = H200) -> str:
    over = total - memory * (1 - SPARE)
    return "fits" if over <= 0 else f"{over / 1e9:.1f} GB too much"


def table() -> Iterator[str]:
    head = ["adapters", "tokens a rank", "inputs of layers", "peak, GB", "on the host, GB", "of a GPU"]
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for adapters, chosen in ADAPTERS.items():
        for tokens, batch in TOKENS.items():
            for place, offload in (("GPU", "false"), ("host", "true")):
                found = predicted([*chosen, *batch, f"train.offload_activations={offload}"])
                cells = [adapters, tokens, place, f"{found.total / 1e9:.1f}", f"{found.host / 1e9:.1f}"]
                yield "| " + " | ".join([*cells, verdict(found.total)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", metavar="RECIPE", help="build every layer of this recipe, and compare")
    parser.add_argument("words", nargs="*", help="overrides of --full's recipe")
    options = parser.parse_args()
    if options.full is None:
        for line in table():
            print(line, flush=True)
        return
    recipe, ranks = options.full, 1 if options.full.endswith("_1gpu") else 8
    few = predicted(options.words, recipe)
    full = largest(built(compose([f"recipe={recipe}", *options.words], world_size=ranks), ranks))
    for name in (*vars(full), "total"):
        print(f"{name:<12}{getattr(full, name) / 1e9:>9.3f} GB{getattr(few, name) / 1e9:>9.3f} GB from few layers")
    print(f"{full.host / PCIE * 1e3:.0f} ms each way over PCIe, of every micro-batch")
    print(verdict(full.total, MEMORY.get(recipe, H200)))


if __name__ == "__main__":
    main()
