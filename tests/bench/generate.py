"""Generation on one CPU thread: the embedded engine against transformers' generate, static and continuous.

    python -m tests.bench.generate [--rounds 5] [--requests 64] [--quick] [--floor]

All generate greedily from the same prompts with one model, of the toy's size with one router group and RoPE, which is
transformers' Qwen3-MoE: a directory of random weights in fp32 that both sides read. Prompts have 8 to 256 tokens and
answers 8 to 256, log-uniform, each answer of its own length. Octavo computes in exact arithmetic.

| arm | what |
|---|---|
| octavo | `trainer.engine`, 64 requests at a time |
| static | `generate` with left padding, each batch as long as its longest answer; the fastest of batches of 16 and 64 |
| continuous | `generate_batch`'s manager: continuous batching with a paged cache |

Each arm runs in a process of its own and they take turns round by round. Figures are CPU time; the ratios are
medians of the rounds' own ratios. Tokens are those asked for. Peak memory is the largest resident size less that before
the model was built. With --floor only Octavo runs, and the time of its experts and other products is reported too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.bench.step import cpu_name, median_ratio, qwen3_moe_config, restart_peak
from trainer.metrics.rates import peak_memory

Answers = list[list[int]]
Run = Callable[[], Answers]
LONGEST = 256


def asked(requests: int) -> list[tuple[list[int], int]]:
    """Prompts, and the number of tokens of each answer."""
    rng = random.Random(0)

    def length() -> int:
        return round(math.exp(rng.uniform(math.log(8), math.log(LONGEST))))

    return [([rng.randrange(4096) for _ in range(length())], length()) for _ in range(requests)]


def write_model(directory: Path) -> None:
    from transformers import Qwen3MoeForCausalLM

    from trainer.config.compose import compose

    cfg = compose(["recipe=toy"]).model
    torch.manual_seed(0)
    config = qwen3_moe_config(
        cfg,
        max_position_embeddings=cfg.max_position,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=None,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(directory)


def octavo(directory: Path, wanted: list[tuple[list[int], int]]) -> Run:
    from trainer.engine.engine import Engine
    from trainer.engine.request import Request, Sampling
    from trainer.model.exact.switch import make_exact, store_for_few_rows
    from trainer.run.host_memory import prepare_host_memory
    from trainer.weights.hf_read import from_huggingface

    prepare_host_memory()
    model = store_for_few_rows(make_exact(from_huggingface(directory).requires_grad_(False)))
    requests = [Request(prompt, length, Sampling(temperature=0.0)) for prompt, length in wanted]
    # Version by version, as prompts repeat in every round, and nothing may be reused.
    engine, rounds = Engine(model, cache_tokens=24_576, batch=64, chunk=512), iter(range(10**6))

    def run() -> Answers:
        engine.use_version(next(rounds))
        return [list(answer.ids) for answer in engine.generate(requests)]

    return run


def published(directory: Path, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention, experts_implementation="grouped_mm"
    ).eval()


def static(directory: Path, wanted: list[tuple[list[int], int]], batch: int) -> Run:
    model = published(directory, "sdpa")

    def run() -> Answers:
        answers = []
        for first in range(0, len(wanted), batch):
            part = wanted[first : first + batch]
            width = max(len(prompt) for prompt, _ in part)
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in part])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in part])
            steps = max(length for _, length in part)
            found = model.generate(ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, pad_token_id=0)
            rows = found[:, width:].tolist()
            answers += [row[:length] for row, (_, length) in zip(rows, part, strict=True)]
        return answers

    return run


def continuous(directory: Path, wanted: list[tuple[list[int], int]]) -> Run:
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = published(directory, "paged|sdpa")
    generation = GenerationConfig(do_sample=False, eos_token_id=None, max_new_tokens=LONGEST)

    def run() -> Answers:
        cache = ContinuousBatchingConfig(
            page_size=32, num_blocks=800, max_batch_tokens=512, max_requests_per_batch=64, allow_block_sharing=False
        )
        with model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=cache, block=True, timeout=60
        ) as manager:
            numbers = [manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1) for prompt, length in wanted]
            found: dict[str, list[int]] = {}
            while len(found) < len(wanted):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    found[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching ended early")
        return [found[number] for number in numbers]

    return run


ARMS: dict[str, Callable[[Path, list[tuple[list[int], int]]], Run]] = {
    "octavo": octavo,
    "static, 16": lambda directory, wanted: static(directory, wanted, 16),
    "static, 64": lambda directory, wanted: static(directory, wanted, 64),
    "continuous": continuous,
}


def serve(arm: str, directory: Path, requests: int) -> None:
    """The child's side: a line comes in, a line with CPU-seconds, peak MB and the hash of the answers goes out."""
    import transformers

    transformers.logging.set_verbosity_error()
    before = restart_peak()
    with torch.no_grad():
        run = ARMS[arm](directory, asked(requests))
        for _ in sys.stdin:
            start = time.process_time()
            answers = run()
            seconds = time.process_time() - start
            peak = (peak_memory() - before) / 2**20
            digests = [hashlib.sha256(str(answer).encode()).hexdigest() for answer in answers]
            print(json.dumps([seconds, peak, digests]), flush=True)


def floor(directory: Path, requests: int, rounds: int) -> tuple[list[float], list[float]]:
    """CPU-seconds of rounds of Octavo, and those of them inside its experts and other products, without attention."""
    from trainer.model.exact import blocks, experts

    inside = [0.0]

    def timed(work: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(*args: Any) -> torch.Tensor:
            start = time.process_time()
            found = work(*args)
            inside[0] += time.process_time() - start
            return found

        return run

    run = octavo(directory, asked(requests))
    whole, products = [], []
    with (
        patch.object(blocks, "product", timed(blocks.product)),
        patch.object(experts, "mixture", timed(experts.mixture)),
    ):
        for number in range(rounds + 1):
            inside[0], start = 0.0, time.process_time()
            run()
            if number:  # the first round warms up
                whole.append(time.process_time() - start)
                products.append(inside[0])
    return whole, products


def measure(
    directory: Path, requests: int, rounds: int, arms: list[str]
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, list[str]]]:
    """CPU-seconds of every round, peak MB, and the answers' hashes, by arm."""
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peaks: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    with ExitStack() as stack:
        children = {}
        for arm in arms:
            command = [sys.executable, "-m", "tests.bench.generate", "--serve", arm, "--directory", str(directory)]
            children[arm] = stack.enter_context(
                subprocess.Popen(
                    [*command, "--requests", str(requests)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for number in range(rounds + 1):
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                child = children[arm]
                assert child.stdin is not None
                assert child.stdout is not None
                print(file=child.stdin, flush=True)
                took, peaks[arm], texts[arm] = json.loads(child.stdout.readline())
                if number:  # the first round warms up
                    seconds[arm].append(took)
    return seconds, peaks, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="8 requests, 1 round")
    parser.add_argument("--floor", action="store_true", help="only Octavo, with the time of its products")
    parser.add_argument("--arms", default=";".join(ARMS), help="arms to run, with ; between them")
    parser.add_argument("--serve", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        serve(args.serve, args.directory, args.requests)
        return
    if args.quick:
        args.requests, args.rounds = 8, 1
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        if args.floor:
            whole, products = floor(Path(directory), args.requests, args.rounds)
            middle, part = statistics.median(whole), statistics.median(products)
            print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, medians of {args.rounds} rounds")
            print(f"{middle:.2f} CPU-seconds a round, {part:.2f} in experts and other products")
            return
        seconds, peaks, texts = measure(Path(directory), args.requests, args.rounds, args.arms.split(";"))
    tokens = sum(length for _, length in asked(args.requests))
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, medians of {args.rounds} rounds")
    print(f"{args.requests} requests, {tokens} tokens of answers")
    print("| arm | CPU seconds | tokens per CPU-second | Octavo's speed over it | equal answers | peak MB |")
    print("|---|---|---|---|---|---|")
    for arm, taken in seconds.items():
        middle, equal = statistics.median(taken), sum(a == b for a, b in zip(texts[arm], texts["octavo"], strict=True))
        faster = median_ratio(taken, seconds["octavo"])
        print(f"| {arm} | {middle:.2f} | {tokens / middle:.0f} | {faster:.2f}x | {equal} | {peaks[arm]:.0f} |")


if __name__ == "__main__":
    main()
