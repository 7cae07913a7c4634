"""The work after pre-training, on one device: generation, a step of adapters on a base in FP8, and a step of RL.

    python -m tests.bench.gpu.after --part lora --size medium --device cuda --into DIR

| part | what |
|---|---|
| generation | tokens a second of the embedded engine, plain and exact, and of transformers' static `generate` |
| lora | bytes at the peak of a step with `lora=all` on a base in FP8, beside what is counted beforehand |
| rl | seconds of a step of `recipe=rl_toy` by part |

The arms of generation have one model of random weights, are in one process and take turns. Each of lora and rl is a
process of its own. On a CPU the peak is that of the process, so only tests run this there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu.clock import Clock, Skipped, Step, tried
from tests.bench.step import qwen3_moe_config
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.memory import rank_memory
from trainer.precision import experts_unavailable

PARTS = ("generation", "lora", "rl")


@dataclass(frozen=True)
class Model:
    """Sizes of a part. requests: of `prompt` tokens, with answers of `answer`."""

    hidden: int
    layers: int
    heads: int
    experts: int
    width: int
    vocabulary: int
    requests: int
    prompt: int
    answer: int
    tokens: int  # of a micro-batch of adapters

    def words(self) -> list[str]:
        """As overrides."""
        sizes = {
            "hidden_size": self.hidden, "num_layers": self.layers, "num_heads": self.heads, "num_kv_heads": 2,
            "head_dim": self.hidden // self.heads, "num_experts": self.experts, "expert_width": self.width,
            "vocab_size": self.vocabulary,
        }  # fmt: skip
        return [f"model.{name}={value}" for name, value in sizes.items()]


SIZES = {
    "tiny": Model(64, 2, 4, 16, 32, 320, 4, 8, 6, 32),
    "small": Model(512, 8, 8, 64, 256, 4096, 64, 128, 128, 4096),
    "medium": Model(2048, 16, 16, 64, 768, 32_768, 64, 256, 256, 8192),
}


def answers(device: torch.device, size: Model, directory: Path, dtype: torch.dtype) -> dict[str, Step | Skipped]:
    """A step of each arm, which answers all requests greedily and returns the tokens."""
    from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

    from trainer.engine.engine import Engine
    from trainer.engine.request import Request, Sampling
    from trainer.model.decoder import Decoder
    from trainer.model.exact.switch import make_exact
    from trainer.weights.hf_read import from_huggingface

    words = ["recipe=toy", *size.words(), "model.router_groups=1", "model.positions=rope"]
    cfg = compose(words).model
    torch.manual_seed(0)
    longest = size.prompt + size.answer
    published = qwen3_moe_config(
        cfg, max_position_embeddings=cfg.max_position, initializer_range=0.05, bos_token_id=None, eos_token_id=None
    )
    Qwen3MoeForCausalLM(published).save_pretrained(directory)
    prompts = torch.randint(1, cfg.vocab_size, (size.requests, size.prompt)).tolist()

    def engine(*, exact: bool) -> Step:
        weights = from_huggingface(directory)
        model = Decoder(weights.cfg, dtype)
        model.load_state_dict(weights.state_dict())
        model = (make_exact(model) if exact else model).requires_grad_(False).to(device)
        pages = size.requests * (longest + 64)
        made = Engine(model, cache_tokens=pages, batch=size.requests, chunk=max(512, size.requests))
        asked = [Request(prompt, size.answer, Sampling(temperature=0.0)) for prompt in prompts]
        version = iter(range(10**6))

        def step() -> list[list[int]]:
            made.use_version(next(version))  # no prefix of the round before
            return [list(one.ids) for one in made.generate(asked)]

        return step

    def static() -> Step:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", experts_implementation="grouped_mm"
        )
        model = model.eval().to(device)
        ids = torch.tensor(prompts, device=device)

        def step() -> list[list[int]]:
            options = {"max_new_tokens": size.answer, "min_new_tokens": size.answer, "do_sample": False}
            found = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
            return found[:, size.prompt :].tolist()

        return step

    return {
        "Octavo's engine": tried(lambda: engine(exact=False)),
        "Octavo's engine, exact": tried(lambda: engine(exact=True)),
        "transformers, static": tried(static),
    }


@torch.no_grad()
def generation(clock: Clock, size: Model, directory: Path, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Tokens a second by arm, and how many answers are those of the first arm."""
    made = answers(clock.device, size, directory, dtype)
    found = {name: tried(step) for name, step in made.items() if not isinstance(step, Skipped)}
    ready = {name: made[name] for name, texts in found.items() if not isinstance(texts, Skipped)}
    times = clock.take_turns(ready, rounds)
    first = next(iter(ready), None)
    rows: dict[str, Any] = {}
    for name, step in made.items():
        if name not in ready:
            rows[name] = {"skipped": (step if isinstance(step, Skipped) else found[name]).reason}
            continue
        tokens = sum(len(answer) for answer in found[name])
        equal = sum(a == b for a, b in zip(found[name], found[first], strict=True))
        rows[name] = {"tokens_per_second": 1e3 * tokens / times[name], "equal_answers": equal, "of": len(found[name])}
    return rows


def steps_of(directory: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "event" not in record]


def lora(device: torch.device, size: Model, into: Path, precision: str) -> dict[str, Any]:
    """Bytes at the peak of a run of four steps, measured and counted; losses of its steps."""
    from trainer.run.process import train
    from trainer.weights.export import export

    data = ["data=synthetic", f"data.seq_len={min(size.tokens, 1024)}", "train.eval_batches=1", "logging.console=off"]
    data += [f"train.device={device.type}", "train.log_every=1", "train.global_batch=8", *size.words()]
    base = compose(["recipe=toy", *data, "train.steps=1", f"run.dir={into / 'base'}", "train.sample_tokens=0"])
    assert train(base) == 0
    export(into / "base", into / "fp8", dtype="fp8")
    micro = size.tokens // min(size.tokens, 1024)
    words = [f"precision={precision}", "lora=all", "lora.base=fp8", f"train.micro_batch={micro}", "train.steps=4"]
    cfg = compose(
        [
            "recipe=lora_toy", *data, *words, "train.recompute=full", f"checkpoint.init_from={into / 'fp8'}",
            f"run.dir={into / 'lora'}",
        ]
    )  # fmt: skip
    assert train(cfg) == 0
    found = steps_of(into / "lora")
    return {
        "peak_bytes": max(record["peak_memory_bytes"] for record in found),
        "counted_bytes": rank_memory(cfg, 1).device,
        "losses": [record["loss"] for record in found],
    }


def rl_config(device: torch.device, size: Model, into: Path, precision: str, steps: int = 4) -> Config:
    """Four steps of the toy's task with a model of `size`, whose vocabulary is the task's."""
    sizes = [word for word in size.words() if not word.startswith("model.vocab_size=")]
    tokens = min(size.answer, 64)  # a window has 112
    words = [
        "recipe=rl_toy", *sizes, f"precision={precision}", f"train.device={device.type}", f"train.steps={steps}",
        "train.eval_every=0", "rl.eval_questions=8", f"rl.max_tokens={tokens}", "logging.console=off",
        f"run.dir={into / 'rl'}", f"data.cache_dir={into / 'cache'}", "rl.freeze_router=true", "train.global_batch=8",
        "train.micro_batch=8",
    ]  # fmt: skip
    return compose(words)


def rl(device: torch.device, size: Model, into: Path, precision: str) -> dict[str, Any]:
    """Medians over the steps but the first: seconds by part, tokens a second; and the mismatch of the engines."""
    from trainer.run.process import train

    assert train(rl_config(device, size, into, precision)) == 0
    found = steps_of(into / "rl")

    def median(key: str) -> float:
        return statistics.median(record[key] for record in found[1:])

    seconds = {part: median(f"{part}/seconds") for part in ("rollout", "reward", "train", "sync")}
    return {
        "seconds": seconds,
        "shares": {part: value / sum(seconds.values()) for part, value in seconds.items()},
        "rollout_tokens_per_second": median("rollout/tokens_per_second"),
        "train_tokens_per_second": median("train/tokens_per_second"),
        "largest_mismatch": max(record["mismatch/max"] for record in found),
        "largest_flip_rate": max(record["replay/flip_rate"] for record in found if record["tokens"]),
    }


def apart(part: str, size: str, device: torch.device, into: Path, precision: str) -> dict[str, Any]:
    """`lora` or `rl` in a process of its own."""
    if reason := experts_unavailable(compose(["recipe=toy", f"precision={precision}"]).precision.experts, device):
        return {"skipped": reason}
    command = [sys.executable, "-m", "tests.bench.gpu.after", "--part", part, "--size", size, "--into", str(into)]
    command += ["--device", device.type, "--precision", precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"skipped": f"FAILED: exit code {done.returncode}; its records are in {into}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown: a line for each arm with all of its figures."""
    lines = ["| arm | figures |", "|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {'; '.join(_cells(row))} |")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            found += _cells(value, f"{key} ")
        elif isinstance(value, list):
            found.append(f"{before}{key} {' '.join(f'{one:.4g}' for one in value)}")
        else:
            found.append(f"{before}{key} {value if isinstance(value, str) else f'{value:.4g}'}")
    return found


def measure(
    parts: Sequence[str], sizes: Sequence[str], clock: Clock, into: Path, dtype: torch.dtype, rounds: int,
    precisions: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Figures by arm, each printed as it comes. precisions: of lora and of rl."""
    rows: dict[str, dict[str, Any]] = {}
    for size in sizes:
        for part in parts:
            here = into / f"{part}-{size}"
            here.mkdir(parents=True)
            if part == "generation":
                found = generation(clock, SIZES[size], here, dtype, rounds)
            else:
                found = {one: apart(part, size, clock.device, here / one, one) for one in precisions[part]}
            more = {f"{part}, {size}: {name}": row for name, row in found.items()}
            print(table(more), flush=True)
            rows |= more
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("lora", "rl"), required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", default="bf16", help="an option of recipes/precision")
    parser.add_argument("--into", type=Path, required=True)
    args = parser.parse_args(arguments)
    found = {"lora": lora, "rl": rl}[args.part](torch.device(args.device), SIZES[args.size], args.into, args.precision)
    print(json.dumps(found | {"size": asdict(SIZES[args.size])["hidden"]}))


if __name__ == "__main__":
    main()
