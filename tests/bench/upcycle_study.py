"""The effect of upcycling on a small model: its loss right after the expansion, and after more training.

    python -m tests.bench.upcycle_study [--quick] [--out docs/upcycling] [--runs runs/upcycle_study]

Trains the base (`recipe=upcycle_study`, on the CPU) and makes it 4 times as many experts in 8 router groups in several
ways. Each of these arms, and the base itself, then trains for STEPS steps on the same new tokens. Beside that, the loss
right after each change alone, with nothing trained. Writes figures to OUT.json and the picture OUT.svg, and prints the
tables of docs/upcycling.md. What is done is not repeated. --quick: a smaller model on synthetic data, in seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import tokenizers
import torch

from tests.bench.step import cpu_name
from tests.bench.upcycle_tables import picture, tables
from trainer.checkpoint.slices import StoredState
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.model import ModelConfig
from trainer.data.build import build_data
from trainer.data.protocols import Data
from trainer.data.shards.tokenizer import Tokenizer
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import chunked_cross_entropy
from trainer.run.process import train
from trainer.storage.boxes import full_box
from trainer.weights.export import export
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import from_huggingface
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.hf_write import write_directory
from trainer.weights.upcycle.calibrate import count_experts
from trainer.weights.upcycle.coactivation import Counts, expected_survival, survival
from trainer.weights.upcycle.placement import CopyPlacement, Expansion, place_copies
from trainer.weights.upcycle.stream import plan_upcycle

FACTOR, GROUPS, MORE_TOKENS = 4, 8, 128
IDLE = 0.1  # of its fair share of tokens, below which an expert counts as idle
HALVES = Expansion(factor=FACTOR, groups=GROUPS)
COACTIVATION = replace(HALVES, strategy="coactivation")
DISTINCT = replace(COACTIVATION, cuts="distinct")
SPREAD = replace(HALVES, strategy="spread")
ALONE = Expansion(factor=1, groups=1, noise=0.0)  # the base, to which one other thing is done

ARMS: dict[str, Expansion | None] = {
    "base": None,
    "halves": HALVES,
    "spread": SPREAD,
    "coactivation": COACTIVATION,
    "halves, no noise": replace(HALVES, noise=0.0),
    "halves, distinct cuts": replace(HALVES, cuts="distinct"),
    "coactivation, distinct cuts": DISTINCT,
    "halves, another seed": replace(HALVES, seed=1),
    "halves, distinct cuts, no noise": replace(HALVES, cuts="distinct", noise=0.0),
    "halves, noise of 1e-1": replace(HALVES, noise=1e-1),
}
# The loss of these is read right after, without training.
CHANGES: dict[str, Expansion] = {
    "experts: halves": replace(HALVES, noise=0.0),
    "experts: halves, distinct cuts": replace(HALVES, noise=0.0, cuts="distinct"),
    "experts: coactivation": replace(COACTIVATION, noise=0.0),
    "experts: coactivation, distinct cuts": replace(DISTINCT, noise=0.0),
    "experts: spread": replace(SPREAD, noise=0.0),
    "noise of 1e-2": replace(ALONE, noise=1e-2),
    "noise of 1e-1": replace(ALONE, noise=1e-1),
    "positions: FoPE, matrices I": replace(ALONE, positions="fope", fope_gain=0.0),
    "positions: FoPE, gain 0.5": replace(ALONE, positions="fope", fope_gain=0.5),
    "all: coactivation, distinct cuts, noise of 1e-2, FoPE of gain 0.5": replace(
        DISTINCT, positions="fope", fope_gain=0.5
    ),
}
VOCABULARY = f"vocabulary: {MORE_TOKENS} more tokens"


@dataclass(frozen=True)
class Scale:
    """The size of it."""

    base: list[str] = field(default_factory=list)  # on top of the recipe
    steps: int = 200  # of every arm
    every: int = 50  # between two looks at the copies
    windows: int = 512  # of text that experts are counted on
    arms: Sequence[str] = tuple(ARMS)


QUICK = Scale(
    base=[
        *("data=synthetic", "data.seq_len=32", "train.steps=6", "train.global_batch=4", "train.micro_batch=4"),
        *("model.vocab_size=64", "model.hidden_size=32", "model.num_layers=2", "model.num_heads=2"),
        *("model.num_kv_heads=1", "model.head_dim=16", "model.num_experts=16", "model.expert_width=16"),
    ],
    steps=4,
    every=2,
    windows=8,
    arms=("base", "halves", "coactivation, distinct cuts", "halves, no noise"),
)


class Study:
    def __init__(self, runs: Path, scale: Scale) -> None:
        self.runs, self.scale = runs, scale
        self.words = [
            *("recipe=upcycle_study", *scale.base, "train.device=cpu", "train.log_every=1", "train.eval_batches=1"),
            *("train.eval_every=0", "train.sample_tokens=0", "logging.console=plain", "logging.wandb=off"),
        ]
        self.cfg = compose(self.words)
        self.data = build_data(self.cfg.data, seed=self.cfg.train.seed, vocab_size=self.cfg.model.vocab_size)
        self.source = self._base()
        self.counts = self._counts()

    def run(self) -> dict[str, Any]:
        """Every figure; those that are there from an earlier start are taken as they are."""
        kept = self.runs / "figures.json"
        figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"changes": {}, "arms": {}}
        figures |= {
            "device": f"{cpu_name()}, torch {torch.__version__}",
            "tokens_a_step": self.cfg.train.global_batch * self.cfg.data.seq_len,
            "base_steps": self.cfg.train.steps,
            "steps": self.scale.steps,
            "survival": self._survival(),
            "weight_of_the_best_two": self._weight_of_the_best_two(),
        }
        for name, evaluate in {**self._changes(), **dict.fromkeys(self.scale.arms, self._arm)}.items():
            part = figures["arms" if name in self.scale.arms else "changes"]
            if name not in part:
                print(f"-- {name}", flush=True)
                part[name] = evaluate(name)
                kept.write_text(json.dumps(figures))
        return figures

    # ---- the base

    def _base(self) -> SourceModel:
        directory = self.runs / "pretrained"
        self._train(compose([*self.words, f"run.dir={directory}"]))
        exported = self.runs / "pretrained_hf"
        if not exported.exists():
            export(directory, exported, dtype="fp32")
        if isinstance(self.data.text.tokenizer, Tokenizer):
            self.data.text.tokenizer.save(exported / "tokenizer.json")
        return survey_directory(open_directory(exported))

    def _counts(self) -> Counts:
        """On text of the training split, in an order of its own."""
        path = self.runs / "counts"
        if not path.exists():
            data = build_data(self.cfg.data, seed=2, vocab_size=self.cfg.model.vocab_size)
            windows = list(data.stream.batch(0, self.scale.windows).inputs["ids"].numpy())
            count_experts(self.source, windows, torch.device("cpu")).save(path)
        return Counts.load(path, self.source)

    def _survival(self) -> dict[str, dict[str, float]]:
        """Share of the held-out text's tokens whose two best experts are apart, by kind of cut: in one, or in FACTOR
        together; and what random cuts keep in expectation."""
        parts = GROUPS // FACTOR
        micro, batches = self.cfg.train.micro_batch, []
        for source in self.data.heldout.sources:
            batches += [late.read().inputs["ids"].numpy() for late in self.data.heldout.batches(source, 4, micro)]
        heldout = count_experts(self.source, [window for batch in batches for window in batch], torch.device("cpu"))
        found = {}
        for name, expansion in (("one cut", COACTIVATION), ("distinct cuts", DISTINCT)):
            placement = self._place(expansion)
            cuts = [
                [experts[first : first + parts] for first in range(0, GROUPS, parts)]
                for experts in (placement.experts_of_groups(layer) for layer in range(self.source.model.num_layers))
            ]
            number = FACTOR if expansion.cuts == "distinct" else 1
            kept = [survival(pairs, *cuts[layer][:number]) for layer, pairs in enumerate(heldout.pairs)]
            expected = expected_survival(self.source.model.num_experts, parts, number)
            found[name] = {"coactivation": round(fmean(kept), 4), "random": round(expected, 4)}
        return found

    @torch.no_grad()
    def _weight_of_the_best_two(self) -> float:
        """Mean over tokens and layers of the base's routing weights, which sum to 1 for a token."""
        model, found = from_huggingface(self.source.directory.path), []
        for block in model.blocks:
            block.moe.router.register_forward_hook(
                lambda router, arguments, routed: found.append(routed[1].topk(2).values.sum(-1).mean())
            )
        batch = next(self.data.heldout.batches(self.data.heldout.sources[-1], 1, self.cfg.train.micro_batch)).read()
        model(batch.inputs["ids"], batch.inputs["positions"], batch.cu_seqlens)
        return round(float(torch.stack(found).mean()), 3)

    # ---- what is done to it

    def _changes(self) -> dict[str, Any]:
        changes: dict[str, Any] = {"none": lambda name: self._look(from_huggingface(self.source.directory.path))}
        changes |= dict.fromkeys(CHANGES, lambda name: self._change(name, CHANGES[name]))
        changes["experts: the best 2 of the base alone"] = lambda name: self._top2()
        if isinstance(self.data.text.tokenizer, Tokenizer):
            changes[VOCABULARY] = lambda name: self._change(name, replace(ALONE, vocabulary=str(self._more_tokens())))
        return changes

    def _change(self, name: str, expansion: Expansion) -> dict[str, Any]:
        if expansion.positions == "fope":  # the base's frequencies: one change at a time
            model = self.source.model
            expansion = replace(expansion, rope_theta=model.rope_theta, max_position=model.max_position)
        directory, _ = self._expand("change", expansion)
        found = self._look(from_huggingface(directory))
        shutil.rmtree(directory)
        return found

    def _top2(self) -> dict[str, Any]:
        """The value of `halves` if every token's two best experts were in different parts."""
        model = from_huggingface(self.source.directory.path)
        for block in model.blocks:
            block.moe.router.experts_per_token = 2
        return self._look(model)

    def _more_tokens(self) -> Path:
        directory = self.runs / "more_tokens"
        directory.mkdir(exist_ok=True)
        more = tokenizers.Tokenizer.from_file(str(self.source.directory.path / "tokenizer.json"))
        more.add_tokens([f"<|more_{number}|>" for number in range(MORE_TOKENS)])
        more.save(str(directory / "tokenizer.json"))
        return directory

    def _place(self, expansion: Expansion) -> CopyPlacement:
        model = self.source.model
        return place_copies(model.num_experts, model.experts_per_token, expansion, model.num_layers, self.counts)

    def _expand(self, name: str, expansion: Expansion) -> tuple[Path, CopyPlacement]:
        directory = self.runs / f"{name}_hf"
        if directory.exists():
            shutil.rmtree(directory)  # of a start that was cut off
        made = plan_upcycle(self.source, expansion, counts=self.counts)
        write_directory(directory, made.bundles, made.config, made.side_files, manifest={"upcycle": made.facts})
        return directory, made.placement

    # ---- training on

    def _arm(self, name: str) -> dict[str, Any]:
        expansion = ARMS[name]
        short = name.replace(", ", "_").replace(" ", "_")
        directory, placement = self.source.directory.path, None
        if expansion is not None:
            directory, placement = self._expand(short, expansion)
        model = from_huggingface(directory)
        found: dict[str, Any] = {
            "expansion": asdict(expansion) if expansion else None,
            "start": self._look(model),
            "distance": {"0": distance(model, placement)} if placement else {},
        }
        run = self.runs / short
        sizes = model.cfg
        changed = [
            *(f"run.dir={run}", f"checkpoint.init_from={directory}", "checkpoint.allow_identical_copies=true"),
            *(f"model.num_experts={sizes.num_experts}", f"model.router_groups={sizes.router_groups}"),
            *(f"train.steps={self.scale.steps}", f"checkpoint.every={self.scale.every}", "checkpoint.keep=100"),
            *("train.seed=1", "optim.schedule=wsd", "optim.warmup_steps=10"),
        ]
        keys = {word.partition("=")[0] for word in changed}  # `compose` refuses a key that is given twice
        cfg = compose([word for word in self.words if word.partition("=")[0] not in keys] + changed)
        self._train(cfg)
        for step in range(self.scale.every, self.scale.steps + 1, self.scale.every):
            model = load_checkpoint(cfg.model, run / "checkpoints" / f"step-{step}")
            if placement is not None:
                found["distance"][str(step)] = distance(model, placement)
        found["end"] = self._look(model)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        by_step = {line["step"]: line for line in lines if "loss" in line}
        found["loss"] = [round(by_step[step]["loss"], 4) for step in sorted(by_step)]
        shutil.rmtree(run / "checkpoints")
        if expansion is not None:
            shutil.rmtree(directory)
        return found

    def _train(self, cfg: Config) -> None:
        if code := train(cfg):
            sys.exit(code)

    def _look(self, model: Decoder) -> dict[str, Any]:
        return look(model, self.data, self.cfg)


@torch.no_grad()
def look(model: Decoder, data: Data, cfg: Config) -> dict[str, Any]:
    """On held-out text: nats per token by source; how many times its fair share the busiest expert gets (the worst
    layer's); the share of experts that get less than IDLE of theirs."""
    heldout, counts = {}, torch.zeros(model.cfg.num_layers, model.cfg.num_experts)
    for source in data.heldout.sources:
        nats, tokens = 0.0, 0
        for batch in (late.read() for late in data.heldout.batches(source, 8, cfg.train.micro_batch)):
            hidden, stats = model(batch.inputs["ids"], batch.inputs["positions"], batch.cu_seqlens)
            nats += float(chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head, batch.labels.flatten(), 512))
            tokens += batch.num_tokens
            counts += stats.counts
        heldout[source] = round(nats / tokens, 4)
    share = counts / counts.mean(1, keepdim=True)
    return {
        "heldout": heldout,
        "busiest": round(float(share.max()), 2),
        "idle": round(float((share < IDLE).float().mean()), 4),
    }


def load_checkpoint(cfg: ModelConfig, step: Path) -> Decoder:
    """The model of a checkpoint."""
    model, state = Decoder(cfg), StoredState(step)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(state.read(f"model.{name}", full_box(value.shape)))
    return model


def distance(model: Decoder, placement: CopyPlacement) -> float:
    """RMS of the difference of an expert's copies to the first copy, over the RMS of that one; all layers."""
    apart = size = 0.0
    for layer, block in enumerate(model.blocks):
        copies = torch.tensor(placement.copies(layer))
        for weight in (block.moe.experts.w13, block.moe.experts.w2):
            first = weight.detach()[copies[:, :1]]
            apart += float((weight.detach()[copies[:, 1:]] - first).double().square().sum())
            size += float(first.double().square().sum()) * (copies.shape[1] - 1)
    return float(f"{(apart / size) ** 0.5:.4g}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model on synthetic data, few steps and arms")
    parser.add_argument("--out", type=Path, default=Path("docs/upcycling"), help="overwritten, .json and .svg")
    parser.add_argument("--runs", type=Path, default=Path("runs/upcycle_study"), help="where runs are kept")
    options = parser.parse_args(arguments)
    if not options.out.parent.is_dir():
        sys.exit(f"error: --out {options.out}: there is no directory {options.out.parent}")
    options.runs.mkdir(parents=True, exist_ok=True)
    figures = Study(options.runs, QUICK if options.quick else Scale()).run()
    options.out.with_suffix(".json").write_text(json.dumps(figures) + "\n")
    options.out.with_suffix(".svg").write_text(picture(figures))
    print(*tables(figures), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
