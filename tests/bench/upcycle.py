"""Upcycling against a script that moves the same bytes: reads the same input, writes and syncs as many, hashes them.

    python -m tests.bench.upcycle [--rounds 5] [--experts 8] [--quick]

The model has the published sizes (hidden 4096, experts 1536 wide) in bf16, one layer of few experts and a small
vocabulary; it becomes four times as many experts in 8 groups, with the default noise. The script reads every tensor of
the input into a buffer once, writes it as often as the result holds it, takes a SHA-256 of each file on the way (each
block right after it is written) and syncs the file: a copy of experts without noise, names or a journal.

Both run in processes of their own, fresh each time, and take turns within a round, at one worker and at two (the
script's files divided over two processes). Seconds are from before the first byte to after the last sync; starting
Python and importing are in neither. CPU-seconds are user and system time of all processes. The ratio is script over
octavo, a median of the rounds' own ratios: above 1, octavo is the faster one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FACTOR, GROUPS, SHARD_BYTES = 4, 8, 250_000_000
ARMS = ("script", "octavo")


def config(experts: int, layers: int = 1, vocab: int = 4096, quick: bool = False) -> dict[str, Any]:
    """A text model of the published sizes, or of small ones."""
    hidden, width = (512, 256) if quick else (4096, 1536)
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": experts, "num_experts_per_tok": 8,
        "moe_intermediate_size": width, "rope_theta": 1e6, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "norm_topk_prob": True, "tie_word_embeddings": False,
    }  # fmt: skip


def make_source(directory: Path, described: dict[str, Any]) -> None:
    """Random numbers; a matrix of 1536 x 4096 takes the same ones as the next, moved by some rows."""
    import torch

    from trainer.weights.hf_config import model_config_from_huggingface
    from trainer.weights.hf_write import Bundle, OutputTensor, write_directory
    from trainer.weights.map import PLAIN, full_name, text_pieces

    pool = (0.02 * torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))).bfloat16()
    bundles = []
    for number, piece in enumerate(text_pieces(model_config_from_huggingface(described))):
        output = OutputTensor(full_name(PLAIN, piece), "BF16", piece.shape)

        def make(output: OutputTensor = output, number: int = number) -> list[torch.Tensor]:
            count = output.nbytes // 2
            repeated = pool.roll(number * 4099)[: min(count, len(pool))].repeat(-(-count // len(pool)))
            return [repeated[:count].view(output.shape)]

        bundles.append(Bundle((output,), make))
    write_directory(directory, bundles, described, shard_bytes=SHARD_BYTES)


def usage() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def octavo(source: Path, target: Path, workers: int) -> dict[str, float]:
    from trainer.weights.hf_files import open_directory
    from trainer.weights.hf_survey import survey_directory
    from trainer.weights.upcycle.engine import run
    from trainer.weights.upcycle.journal import identity
    from trainer.weights.upcycle.placement import Expansion
    from trainer.weights.upcycle.stream import plan_upcycle

    began, used = time.perf_counter(), usage()
    found = survey_directory(open_directory(source))
    expansion = Expansion(factor=FACTOR, groups=GROUPS)
    planned = plan_upcycle(found, expansion)
    run(target, planned, lambda: identity(found), workers=workers, shard_bytes=SHARD_BYTES)
    return {"wall": time.perf_counter() - began, "cpu": usage() - used}


Part = tuple[str, int, int, int]  # file, start, bytes, copies


def script(source: Path, target: Path, workers: int) -> dict[str, float]:
    began, used = time.perf_counter(), usage()
    parts: list[Part] = []
    for file in sorted(source.glob("*.safetensors")):
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        header.pop("__metadata__")
        for name, facts in header.items():
            start, stop = facts["data_offsets"]
            copies = FACTOR if ".experts." in name or ".gate." in name else 1
            parts.append((str(file), 8 + length + start, stop - start, copies))
    files: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if size + part[2] * part[3] > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(part)
        size += part[2] * part[3]
    target.mkdir()
    children = [
        multiprocessing.get_context("fork").Process(target=move, args=(files, target, first, workers))
        for first in range(workers)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    return {"wall": time.perf_counter() - began, "cpu": usage() - used}


def move(files: list[list[Part]], target: Path, first: int, step: int) -> None:
    buffer = memoryview(bytearray(max(part[2] for parts in files for part in parts)))
    for number in range(first, len(files), step):
        digest = hashlib.sha256()
        with open(target / f"{number:05}", "wb", buffering=0) as out:
            for file, start, count, copies in files[number]:
                data = buffer[:count]
                with open(file, "rb", buffering=0) as stream:
                    stream.seek(start)
                    assert stream.readinto(data) == count
                for _ in range(copies):
                    for at in range(0, count, 1 << 20):
                        block = data[at : at + (1 << 20)]
                        out.write(block)
                        digest.update(block)
            os.fsync(out.fileno())
        (target / f"{number:05}.sha256").write_text(digest.hexdigest())


def measure(arm: str, source: Path, target: Path, workers: int) -> dict[str, float]:
    """In a process of its own; removes what was written."""
    command = [sys.executable, "-m", "tests.bench.upcycle", "--serve", arm, str(source), str(target), str(workers)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found["bytes"] = sum(file.stat().st_size for file in target.iterdir())
    shutil.rmtree(target)
    os.sync()  # no arm pays for what another left to be written
    return dict(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--directory", type=Path, default=None, help="where to write (a new one among temporary files)")
    parser.add_argument("--quick", action="store_true", help="small matrices, 2 rounds: does it run at all")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        arm, source, target, workers = options.serve
        run = {"script": script, "octavo": octavo}[arm]
        print(json.dumps(run(Path(source), Path(target), int(workers))))
        return 0
    rounds = 2 if options.quick else options.rounds
    described = config(options.experts, quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="octavo-bench-", dir=options.directory) as name:
        place = Path(name)
        expert = 3 * 2 * described["hidden_size"] * described["moe_intermediate_size"]
        need = (FACTOR + 1) * options.experts * expert + 500_000_000
        if (free := shutil.disk_usage(place).free) < need:
            print(f"{need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free in {place}", file=sys.stderr)
            return 1
        make_source(place / "source", described)
        size = sum(file.stat().st_size for file in (place / "source").iterdir())
        print(f"{platform.machine()}, {os.cpu_count()} cores; input {size / 1e9:.2f} GB in bf16, {rounds} rounds")
        print(f"\n{'workers':>7}{'':10}{'GB/s':>8}{'CPU-s/GB':>10}{'wall ratio':>12}{'CPU ratio':>11}")
        for workers in map(int, options.workers.split(",")):
            taken: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
            for number in range(rounds + 1):
                for arm in ARMS if number % 2 else ARMS[::-1]:
                    found = measure(arm, place / "source", place / "out", workers)
                    if number:  # the first round warms the page cache
                        taken[arm].append(found)
            _print(workers, taken)
    return 0


def _print(workers: int, taken: dict[str, list[dict[str, float]]]) -> None:
    ratio = {
        key: statistics.median(a[key] / b[key] for a, b in zip(taken["script"], taken["octavo"], strict=True))
        for key in ("wall", "cpu")
    }
    for arm in ARMS:
        speed = statistics.median(one["bytes"] / one["wall"] for one in taken[arm]) / 1e9
        cpu = statistics.median(one["cpu"] / one["bytes"] for one in taken[arm]) * 1e9
        ratios = f"{ratio['wall']:>12.2f}{ratio['cpu']:>11.2f}" if arm == "octavo" else ""
        print(f"{workers:>7} {arm:9}{speed:>8.2f}{cpu:>10.2f}{ratios}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
