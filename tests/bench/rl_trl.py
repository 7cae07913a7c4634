"""Steps of reinforcement learning on one CPU thread: Octavo against TRL's GRPO trainer by its plain path.

    python -m tests.trainer.weights.peers.environments trl     # once
    python -m tests.bench.rl_trl [--rounds 10] [--workloads short,long]

Both train the same Qwen3-MoE from the same random weights on the same questions in the same order: a group of answers
to each question, one update of AdamW for each round of answers, fp32, the same reward, entropy bonus and clipping.
TRL generates with transformers' `generate`, SDPA attention and `grouped_mm` experts, without gradient checkpointing
(its default has it), all answers of a step in one batch. Octavo is `recipe=rl_toy` with its defaults: rollouts by the
embedded engine, experts replayed, groups without a difference dropped, a line of metrics for every step.

| workload | model | questions a step x answers | tokens of a prompt | of an answer |
|---|---|---|---|---|
| short | rl_toy's: 2 layers of 64, 8 experts, 2 a token | 24 x 8 | 4 | 4 |
| long | 4 layers of 256, 64 experts 64 wide, 8 a token | 8 x 8 | 16 | 64 |
| mixed | that of long | 8 x 8 | 4 to 32 | up to 64: it ends by itself, after 18 on average |

In short and long no answer can end, so both draw equally many tokens: for TRL the end of a text is an id that the model
does not have, Octavo's requests have no stop tokens. In mixed a random model draws the end of the text.

Each side runs in a process of its own and they take turns step by step. Figures are CPU time after the first steps,
which warm up; ratios are medians of the rounds' own ratios. "TRL, kept" is TRL with the allocator's settings that
Octavo has on a CPU (`trainer/run/host_memory.py`).

"products" are the matrix products of a step alone, by torch and into results that are there already: forward for every
token of a rollout, each answer with a prompt of its own as TRL computes it, and forward and both gradients for every
token of training, rows spread evenly over the experts. Attention is not among them. It takes its turns like the sides.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from tests.bench.step import cpu_name, median_ratio, qwen3_moe_config
from tests.trainer.weights.peers.environments import CHECKOUT, interpreter
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.model import ModelConfig
from trainer.data.shards.tokenizer import END_OF_DOCUMENT

WARM = 3  # steps before the first that counts
QUESTIONS = 2000
CHARACTERS = "0123456789=+-*"  # with the two special tokens the whole vocabulary
INSIDE = Path(__file__).with_name("inside")
ARMS = ("octavo", "TRL", "TRL, kept")
PRODUCTS = "products"  # beside the arms, where all lengths are equal


@dataclass(frozen=True)
class Workload:
    """prompts: questions of a step, with `group` answers each. prompt, answer: tokens, of each or, where answers end by
    themselves (`ends`), at most. words: override rl_toy."""

    prompts: int
    group: int
    prompt: int
    answer: int
    words: Sequence[str] = ()
    ends: bool = False


TOY = [
    *("model.hidden_size=256", "model.num_layers=4", "model.head_dim=64", "model.num_experts=64"),
    *("model.experts_per_token=8", "model.max_position=256", "data.seq_len=160", "train.micro_batch=8"),
    "optim.lr=3e-4",
]
WORKLOADS = {
    "short": Workload(24, 8, 4, 4),
    "long": Workload(8, 8, 16, 64, TOY),
    "mixed": Workload(8, 8, 32, 64, TOY, ends=True),
}


@dataclass(frozen=True)
class Spec:
    """A run, as the script of the other side reads it. questions: of all steps, with prompt and answer."""

    directory: str
    model: str
    tokenizer: str
    questions: Sequence[Mapping[str, str]]
    prompts: int
    group: int
    rollouts: int
    answer: int
    lr: float
    betas: Sequence[float]
    clip_norm: float
    entropy_coef: float
    ends: bool
    keep_memory: bool = False


@dataclass(frozen=True)
class Step:
    """cpu_s: of the whole step. parts: of it, by name. entropy: nats of the distribution of a token. grad_norm: before
    clipping. tokens: drawn; trained: of them, in groups that teach."""

    cpu_s: float
    parts: Mapping[str, float]
    reward: float
    entropy: float
    grad_norm: float
    tokens: int
    trained: int


def config(place: Path, workload: Workload) -> Config:
    return compose(
        [
            "recipe=rl_toy", f"run.dir={place / 'run'}", "model.router_groups=1", "model.vocab_size=16",
            "data.build=none", f"data.root={place}", f"data.tokenizer={place}", "data.holdout_fraction=0.1",
            "data.questions={reverse: {path: questions.jsonl}}", f"checkpoint.init_from={place / 'model'}",
            f"train.global_batch={workload.prompts}", f"rl.group_size={workload.group}", "rl.reward=overlap",
            f"rl.max_tokens={workload.answer}", "train.steps=1000", "train.eval_every=0", "train.device=cpu",
            "logging.console=off", *workload.words,
        ],
        world_size=1,
    )  # fmt: skip


def write(place: Path, workload: Workload, steps: int) -> Spec:
    """The model, the tokenizer and the questions in `place`: an answer repeats the digits from the last to the
    first."""
    from transformers import Qwen3MoeForCausalLM

    from trainer.data.questions.stream import open_questions

    rows = []
    for number in range(QUESTIONS):
        digits = f"{number * 618_033_989 % 10**9:09}" * 4
        digits = digits[: 3 + number % (workload.prompt - 3) if workload.ends else workload.prompt - 1]
        answer = digits[::-1] * (workload.answer // len(digits) + 1)
        rows.append(json.dumps({"prompt": f"{digits}=", "answer": answer[: workload.answer]}) + "\n")
    (place / "questions.jsonl").write_text("".join(dict.fromkeys(rows)))
    vocabulary = {token: number for number, token in enumerate([END_OF_DOCUMENT, "<|unknown|>", *CHARACTERS])}
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([END_OF_DOCUMENT, "<|unknown|>"])
    library.save(str(place / "tokenizer.json"))
    cfg = config(place, workload)
    torch.manual_seed(0)
    published = qwen3_moe_config(
        cfg.model, max_position_embeddings=cfg.model.max_position, initializer_range=cfg.model.init_std,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    Qwen3MoeForCausalLM(published).save_pretrained(place / "model")
    data, _ = open_questions(cfg.data, seed=cfg.train.seed, weights=None, kept=None)
    assert data.questions is not None
    asked = data.questions.ask(0, steps * workload.prompts)
    assert max(len(one.prompt) for one in asked) == workload.prompt
    return Spec(
        directory=str(place / "trl"),
        model=str(place / "model"),
        tokenizer=str(place / "tokenizer.json"),
        questions=[{"prompt": str(one.record.prompt), "answer": one.record.answer} for one in asked],
        prompts=workload.prompts,
        group=workload.group,
        rollouts=workload.prompts * workload.group,
        answer=workload.answer,
        lr=cfg.optim.lr,
        betas=cfg.optim.betas,
        clip_norm=cfg.optim.clip_norm,
        entropy_coef=cfg.rl.entropy_coef,
        ends=workload.ends,
    )


def octavo(place: Path, workload: Workload, out: IO[str]) -> None:
    """Octavo's side: a line of JSON after every step, then it waits for a line."""
    from trainer.rl.producer import Synchronous
    from trainer.rl.rollout.embedded import Embedded
    from trainer.run.policy.trainer import PolicyTrainer
    from trainer.run.process import train

    seconds: dict[str, float] = {}
    records: list[dict[str, Any]] = []

    def timed(name: str, owner: type, method: str) -> None:
        function: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            started = time.process_time()
            found = function(*args, **options)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
            return found

        setattr(owner, method, call)

    generate, record, between = Embedded.generate, PolicyTrainer._record, PolicyTrainer._between_steps
    before = [time.process_time()]

    def endless(self: Embedded, requests: Sequence[Any], *, deadline_s: float) -> Any:
        return generate(self, [replace(one, stop_ids=frozenset()) for one in requests], deadline_s=deadline_s)

    def kept(self: PolicyTrainer, found: dict[str, Any]) -> dict[str, Any]:
        records.append(record(self, found))
        return records[-1]

    def turn(self: PolicyTrainer) -> None:
        between(self)
        whole, line = time.process_time() - before[0], records[-1]
        parts = {name: seconds.pop(name, 0.0) for name in ("rollout", "reward", "train", "sync")}
        tokens = round(line["length/mean"] * workload.prompts * workload.group)
        step = Step(
            whole, {**parts, "rest": whole - sum(parts.values())}, line["reward/mean"], line["entropy"],
            line["grad_norm"], tokens, line["tokens"],
        )  # fmt: skip
        print(json.dumps(asdict(step)), file=out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        before[0] = time.process_time()

    if not workload.ends:
        setattr(Embedded, "generate", endless)  # noqa: B010
    setattr(PolicyTrainer, "_record", kept)  # noqa: B010
    setattr(PolicyTrainer, "_between_steps", turn)  # noqa: B010
    timed("rollout", Embedded, "generate")
    timed("reward", Synchronous, "_score")
    timed("train", PolicyTrainer, "_train_step")
    timed("sync", PolicyTrainer, "_send_weights")
    raise SystemExit(train(config(place, workload)))


def products(cfg: ModelConfig, workload: Workload) -> Callable[[], None]:
    """A step's matrix products."""
    rollouts, answer = workload.prompts * workload.group, workload.answer
    taken = workload.prompt + answer - 1  # inputs of a rollout
    weights = [
        (experts, torch.randn(experts, columns, inner))
        for _ in range(cfg.num_layers)
        for experts, columns, inner in (
            (1, (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim, cfg.hidden_size),
            (1, cfg.hidden_size, cfg.num_heads * cfg.head_dim),
            (1, cfg.num_experts, cfg.hidden_size),
            (cfg.num_experts, 2 * cfg.expert_width, cfg.hidden_size),
            (cfg.num_experts, cfg.hidden_size, cfg.expert_width),
        )
    ]
    weights.append((1, torch.randn(1, cfg.vocab_size, cfg.hidden_size)))

    def of_tokens(tokens: int, *, gradients: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
        found = []
        for experts, weight in weights:
            rows = tokens if experts == 1 else max(1, tokens * cfg.experts_per_token // experts)
            y, x = (torch.randn(rows, count) for count in weight.shape[1:])
            for one in weight:
                found.append((x, one.t(), torch.empty_like(y)))
                if gradients:
                    found += [(y, one, torch.empty_like(x)), (y.t(), x, torch.empty_like(one))]
        return found

    prompts = of_tokens(rollouts * workload.prompt, gradients=False)
    drawn = of_tokens(rollouts, gradients=False)
    trained = of_tokens(rollouts * taken, gradients=True)

    def step() -> None:
        for some, times in ((prompts, 1), (drawn, answer - 1), (trained, 1)):
            for _ in range(times):
                for a, b, result in some:
                    torch.mm(a, b, out=result)

    return step


class Side:
    """A process that takes a step when it is asked."""

    def __init__(self, arm: str, name: str, place: Path, spec: Spec, stack: ExitStack) -> None:
        if arm == "octavo":
            command = [sys.executable, "-m", "tests.bench.rl_trl", "--serve", name, "--directory", str(place)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        else:
            python, environment = interpreter("trl")
            command = [python, str(INSIDE / "trl_grpo.py")]
        self.errors = stack.enter_context((place / f"{arm}.log").open("w+"))
        self.process = stack.enter_context(
            subprocess.Popen(
                command, cwd=CHECKOUT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self.errors, text=True,
            )
        )  # fmt: skip
        stack.callback(self.process.kill)
        self.next = ""
        if arm != "octavo":
            own = replace(spec, keep_memory=arm == "TRL, kept", directory=str(place / arm))
            self.next = json.dumps(asdict(own)) + "\n"

    def step(self) -> Step:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(self.next)
        self.process.stdin.flush()
        self.next = "\n"
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"a side ended: {self.errors.read()[-4000:]}")
        return Step(**json.loads(line))


def measure(name: str, rounds: int, arms: Sequence[str] = ARMS) -> tuple[dict[str, list[Step]], list[float]]:
    """Steps after the warm-up, by arm; and beside them the CPU-seconds of the products, where lengths are equal."""
    workload = WORKLOADS[name]
    found: dict[str, list[Step]] = {arm: [] for arm in arms}
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        spec = write(place, workload, WARM + rounds)
        multiply = None if workload.ends else products(config(place, workload).model, workload)
        sides = {arm: Side(arm, name, place, spec, stack) for arm in arms}
        for number in range(WARM + rounds):
            for arm in [*arms[number % len(arms) :], *arms[: number % len(arms)]]:
                step = sides[arm].step()
                if number >= WARM:
                    found[arm].append(step)
            if multiply is not None:
                started = time.process_time()
                multiply()
                if number >= WARM:
                    alone.append(time.process_time() - started)
    return found, alone


def table(name: str, found: Mapping[str, Sequence[Step]], alone: Sequence[float]) -> list[str]:
    """Lines of Markdown."""

    def share(steps: Sequence[Step], part: str) -> str:
        if part not in steps[0].parts:
            return "-"
        return f"{sum(step.parts[part] for step in steps) / sum(step.cpu_s for step in steps):.1%}"

    lines = []
    for arm, steps in found.items():
        middle, half = statistics.median(step.cpu_s for step in steps), len(steps) // 2
        ratio = median_ratio([step.cpu_s for step in steps], [step.cpu_s for step in found["octavo"]])
        tokens, trained = {step.tokens for step in steps}, statistics.mean(step.trained for step in steps)
        first, last = (statistics.mean(step.reward for step in part) for part in (steps[:half], steps[half:]))
        shares = " | ".join(share(steps, part) for part in ("rollout", "train", "sync", "reward", "rest"))
        lines.append(
            f"| {name} | {arm} | {middle:.3f} | {3600 / middle:,.0f} | {ratio:.2f}x | {shares} | "
            f"{' '.join(map(str, sorted(tokens)))} | {trained:.0f} | {first:.3f}, {last:.3f} |"
        )
    if alone:
        middle, gaps = statistics.median(alone), " |" * 8
        ratio = median_ratio(alone, [step.cpu_s for step in found["octavo"]])
        lines.append(f"| {name} | {PRODUCTS} | {middle:.3f} | {3600 / middle:,.0f} | {ratio:.2f}x |{gaps}")
    return lines


HEAD = (
    "| workload | side | CPU-seconds a step | steps per CPU-hour | Octavo's speed over it | rollout | training | "
    "sync | reward | rest | tokens drawn | trained | reward, first and second half |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--arms", default=";".join(ARMS), help="arms to run, with ; between them")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        octavo(args.directory, WORKLOADS[args.serve], out)
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, fp32; CPU time, {args.rounds} steps each")
    print(HEAD)
    print(f"|{'---|' * (HEAD.count('|') - 1)}")
    for name in args.workloads.split(","):
        print("\n".join(table(name, *measure(name, args.rounds, args.arms.split(";")))), flush=True)


if __name__ == "__main__":
    main()
