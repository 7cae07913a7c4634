"""Starting a run on six trillion tokens: our index, which is computed, beside Megatron-core's, which is built.

The mixture is `data=cpt_6t`'s by its numbers: nine sources, 6e12 tokens, 1.46e9 samples of 4,096 tokens, 5.4e9
documents. Ours is measured at that size, from made-up manifests of 6,000 shards whose token files do not exist.
Megatron's `GPTDataset` of each source and the `BlendedDataset` over them (its compiled helpers included) are built over
made-up document lengths at sizes scaled down; its time and memory at full size are extrapolated along the straight line
through the two largest, which is kind to it: its shuffles slow down once an array outgrows the caches.
Megatron builds once for a mixture and a number of samples, and keeps the arrays in files that later starts map; ours
is computed at every start.

Each start is in a process of its own, which has imported torch (and Megatron) before time and memory count. Times are
CPU-seconds of one thread; memory is the growth of the resident size, without Megatron's document lengths.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# billions of tokens
SOURCES = {
    "captions": 270, "image_text": 330, "science": 2400, "structured": 300, "time_series": 30, "web": 1500, "code": 600,
    "mathematics": 420, "multilingual": 150,
}  # fmt: skip
TOKENS, DOCUMENTS, SEQ_LEN = 6_000_000_000_000, 5_400_000_000, 4096
SEEKS = 200


def cpt_6t(scale: int = 1) -> Any:
    """The mixture's DataConfig, cut to 1 / scale."""
    from trainer.config.keys import DataConfig
    from trainer.config.mixture import PhaseConfig, SourceConfig

    tokens = {name: billions * 10**9 // scale for name, billions in SOURCES.items()}
    sources = {
        name: SourceConfig(
            path=name, domain="general", tokens=count, unique_tokens=count, prefix="",
            phases={"stable": float(SOURCES[name]), "anneal": float(SOURCES[name])},
        )
        for name, count in tokens.items()
    }  # fmt: skip
    phases = {
        "stable": PhaseConfig(tokens=TOKENS * 9 // 10 // scale),
        "anneal": PhaseConfig(tokens=TOKENS // 10 // scale),
    }
    return DataConfig(name="mixture", seq_len=SEQ_LEN, sources=sources, phases=phases)


def write_manifests(root: Path, scale: int) -> None:
    """A source's directory each, with a manifest of shards of 1e9 tokens and nothing else."""
    from trainer.data.shards.files import write_manifest

    for name, billions in SOURCES.items():
        shards = []
        for number in range(max(billions // scale, 1)):
            stem, tokens = f"train-{number:05}", min(billions * 10**9 // scale, 10**9)
            sizes = {".bin": 4 * tokens, ".idx": 20 * tokens // 1111, ".blocks": 16 * (tokens // 260_000)}
            files = {stem + suffix: {"bytes": size, "sha256": "0" * 64} for suffix, size in sizes.items()}
            documents = DOCUMENTS * tokens // TOKENS
            shards.append({"stem": stem, "tokens": tokens, "documents": documents, "files": files})
        tokenizer = {"sha256": "0" * 64, "vocab_size": 155_008, "eos_id": 0}
        (root / name).mkdir()
        facts = {"name": name, "domain": "general", "tokenizer": tokenizer, "prefix": None, "shards": shards}
        write_manifest(root / name, {**facts, "heldout": []})


def start_octavo(scale: int) -> dict[str, float]:
    """CPU-seconds and MB from before the imports to the first sample's window; ms of CPU of later seeks, in the median
    and at most, and of `passes` beside them, in the median."""
    import torch  # noqa: F401  # the interpreter that a run starts from

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        subprocess.run([sys.executable, "-m", __spec__.name, "manifests", str(scale), str(root)], check=True)
        before, began = memory_mb(), time.process_time()
        from trainer.config.checks.data import check_mixture
        from trainer.data.mixture.index import MixtureIndex
        from trainer.data.shards.windows import Shards

        data = cpt_6t(scale)
        assert not check_mixture(data)
        sources = {name: Shards(root / name) for name in data.sources}
        windows = {name: source.num_windows(SEQ_LEN) for name, source in sources.items()}
        index = MixtureIndex.of(data, windows, seed=0)
        index.lookup(np.array([0]))
        seconds, mb = time.process_time() - began, memory_mb() - before
    seeks, beside, samples = [], [], sum(phase.tokens for phase in data.phases.values()) // SEQ_LEN
    for sample in np.random.default_rng(0).integers(0, samples, SEEKS):
        started = time.process_time()
        index.lookup(np.array([sample]))
        found = time.process_time()
        passes()
        seeks.append(1e3 * (found - started))
        beside.append(1e3 * (time.process_time() - found))
    return {
        "samples": samples,
        "documents": sum(source.num_documents for source in sources.values()),
        "seconds": seconds,
        "mb": mb,
        "seek_ms": float(np.median(seeks)),
        "slowest_seek_ms": max(seeks),
        "passes_ms": float(np.median(beside)),
    }


def passes() -> None:
    """100 rounds of arithmetic, a running sum, a sort and a gather over 256 numbers: 1 ms of a quiet machine, and more
    of one whose caches others use."""
    numbers = np.arange(256, dtype=np.int64)
    for _ in range(100):
        quotients, rest = np.divmod(numbers, 1009)
        order = np.argsort(np.cumsum(rest) % 8191, kind="stable")
        numbers = numbers[order] + quotients


def start_megatron(scale: int) -> dict[str, float]:
    """CPU-seconds and MB of its index build."""
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    tokenizer = SimpleNamespace(vocab_size=155_008, eod=0, pad=-1, unique_identifiers={})
    config = GPTDatasetConfig(
        random_seed=0, sequence_length=SEQ_LEN, tokenizer=tokenizer,
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    rng, mean = np.random.default_rng(0), TOKENS // DOCUMENTS
    samples = {name: 10**9 * billions // scale // SEQ_LEN for name, billions in SOURCES.items()}
    lengths = {}  # 2 % more than what is drawn: it wants a surplus, and one epoch
    for name, billions in SOURCES.items():
        documents = int(1.02 * DOCUMENTS * billions * 10**9 // TOKENS // scale)
        lengths[name] = rng.integers(mean // 2, mean * 3 // 2, documents).astype(np.int32)
    before, began = memory_mb(), time.process_time()
    datasets = []
    for name, documents in lengths.items():
        low_level = SimpleNamespace(sequence_lengths=documents, path_prefix=name)
        indices = np.arange(len(documents), dtype=np.int32)
        wanted = int(samples[name] * (1 + config.mid_level_dataset_surplus))
        datasets.append(GPTDataset(low_level, name, indices, wanted, Split.train, config))
    blended = BlendedDataset(datasets, [float(n) for n in SOURCES.values()], sum(samples.values()), config)
    seconds = time.process_time() - began
    documents = sum(map(len, lengths.values()))
    return {"samples": len(blended), "documents": documents, "seconds": seconds, "mb": memory_mb() - before}


STARTS = {"octavo": start_octavo, "megatron": start_megatron}


def memory_mb() -> float:
    """Resident now: the largest size so far may be from an import."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure(arm: str, scale: int) -> dict[str, float]:
    """One start, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.data_index", arm, str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = ["index", "samples", "documents", "CPU s to start", "MB", "seek, CPU ms (slowest)"]


def report(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Prints the table; returns every figure."""
    scales = [20_000, 5_000] if quick else [5_000, 1_000, 200]
    print(f"Index of {TOKENS:.2g} tokens; CPU-seconds and MB of the best of {rounds} starts")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    results = {}
    for arm, sizes in (("octavo", [*scales[-1:], 1]), ("megatron", scales)):
        for scale in sizes:
            starts = [measure(arm, scale) for _ in range(rounds)]
            best = {key: min(start[key] for start in starts) for key in starts[0]}
            results[f"{arm} / {scale}"] = best
            seek = f"{best['seek_ms']:.2f} ({best['slowest_seek_ms']:.2f})" if "seek_ms" in best else ""
            row(arm, best["samples"], best["documents"], f"{best['seconds']:.3g}", f"{best['mb']:.0f}", seek)
    small, large = (results[f"megatron / {scale}"] for scale in scales[-2:])
    full = {key: line(small, large, key, TOKENS // SEQ_LEN) for key in ("seconds", "mb")}
    results["megatron / 1, extrapolated"] = full
    row("megatron, extrapolated", TOKENS // SEQ_LEN, DOCUMENTS, f"{full['seconds']:.0f}", f"{full['mb']:.0f}", "")
    return results


def line(small: dict[str, float], large: dict[str, float], key: str, samples: int) -> float:
    """The value at `samples` of the straight line through two measurements."""
    slope = (large[key] - small[key]) / (large["samples"] - small["samples"])
    return large[key] + slope * (samples - large["samples"])


def row(arm: str, samples: float, documents: float, *cells: str) -> None:
    print("| " + " | ".join([arm, f"{samples:.3g}", f"{documents:.2g}", *cells]) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="one start; the benchmark is tests.bench.data")
    parser.add_argument("arm", choices=[*STARTS, "manifests"])
    parser.add_argument("scale", type=int)
    parser.add_argument("root", type=Path, nargs="?")
    given = parser.parse_args()
    if given.arm == "manifests":
        write_manifests(given.root, given.scale)
    else:
        print(json.dumps(STARTS[given.arm](given.scale)))
