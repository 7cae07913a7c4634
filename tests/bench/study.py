"""Does a generalist that is trained on the same specialised data beat a specialist? Small models, one set of records.

    python -m tests.bench.study [--quick] [--out docs/study] [--runs runs/study] [--only ARM-SEED ...]

Trains every arm with two seeds on one device (the CPU), asks each model the same questions, writes figures to OUT.json
and prints the tables of docs/study.md. What is done is not repeated, and a training that was stopped is resumed. With
--only, runs of these names are made and nothing is written to OUT: several processes can share the work.
--quick: few records and steps.

| arm | reads | tokens |
|---|---|---|
| raw | the records in two fixed templates | T |
| fluent | the records as `octavo science` writes them | T |
| mixture | the same fluent texts, with prefixes, between other science, code and prose | T |
| mixture, equal records | the same | T / the share of records |
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import tokenizers
import torch
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.bench.step import cpu_name
from tests.bench.study_records import (
    HELDOUT,
    Question,
    compounds,
    fluent_documents,
    questions,
    raw_documents,
    without_names,
)
from tests.bench.study_tables import figures_of, tables
from trainer import api
from trainer.corpora.packages import SOURCES, Document
from trainer.corpora.science.tables.builtin import SCIENCE
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.shards.tokenizer import END_OF_DOCUMENT
from trainer.storage.atomic import atomic_directory

PREFIXES = {
    "science": ["Scientific text.\n", "From the sciences:\n", "A note on science.\n"],
    "general": ["General text.\n", "From everyday use:\n", "A plain note.\n"],
}
SHARE = {"fluent": Fraction(1, 2), "thermo": Fraction(1, 8), "code": Fraction(1, 8), "prose": Fraction(1, 4)}
DOMAIN = {"raw": "science", "fluent": "science", "thermo": "science", "code": "general", "prose": "general"}
RECORDS = ("raw", "fluent")
ANSWER_TOKENS = 40


@dataclass(frozen=True)
class Arm:
    """sources: with their shares. prefixes: before documents and questions. times: T times this is read."""

    sources: dict[str, Fraction]
    prefixes: bool = False
    times: Fraction = Fraction(1)

    def corpus(self, source: str) -> str:
        """The directory of a source's documents as this arm reads them."""
        return f"{source}_with_prefix" if self.prefixes else source


ARMS = {
    "raw": Arm({"raw": Fraction(1)}),
    "fluent": Arm({"fluent": Fraction(1)}),
    "mixture": Arm(SHARE, prefixes=True),
    "mixture, equal records": Arm(SHARE, prefixes=True, times=1 / SHARE["fluent"]),
}


@dataclass(frozen=True)
class Scale:
    """The size of it."""

    trained: int = 192  # records
    heldout: int = 128
    variants: int = 4  # seeds of the fluent texts
    asked: int = 192  # records in a kind of question, at most
    characters: int = 1_000_000  # of other sources each
    vocab_size: int = 2048
    steps: int = 1000  # of an arm of T tokens
    seeds: tuple[int, ...] = (0, 1)
    window: int = 256  # tokens
    batch: int = 4
    model: tuple[str, ...] = (
        *("model.hidden_size=128", "model.num_layers=3", "model.num_heads=4", "model.head_dim=32"),
        *("model.num_experts=4", "model.experts_per_token=2", "model.router_groups=2", "model.expert_width=192"),
        *("optim=muon", "optim.lr=6e-3"),
    )
    arms: tuple[str, ...] = tuple(ARMS)

    @property
    def tokens(self) -> int:
        """T."""
        return self.steps * self.window * self.batch


QUICK = Scale(
    trained=70,
    heldout=10,
    variants=1,
    asked=2,
    characters=60_000,
    vocab_size=400,
    steps=10,
    seeds=(0,),
    window=64,
    batch=2,
    model=(
        *("model.hidden_size=32", "model.num_layers=1", "model.num_heads=2", "model.head_dim=16"),
        *("model.num_experts=4", "model.experts_per_token=2", "model.router_groups=2", "model.expert_width=16"),
    ),
)


class Study:
    """runs: a directory with all that is made, used by any number of processes of one scale one after another."""

    def __init__(self, runs: Path, scale: Scale) -> None:
        self.runs, self.scale = runs, scale
        made = runs / "made"
        if not made.exists():
            with atomic_directory(made) as partial:
                self._make(partial)
        self.corpora = made / "corpora"
        self.questions = [Question(**one) for one in json.loads((made / "questions.json").read_text())]
        self.facts: dict[str, Any] = json.loads((made / "facts.json").read_text())
        self.recipes = made / "recipes"

    def run(self, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Return the answers and costs of each run; of `names` (ARM-SEED) alone where there are any."""
        found = {}
        for arm in self.scale.arms:
            for seed in self.scale.seeds:
                name = name_of(arm, seed)
                if not names or name in names:
                    found[name] = self._run(name, arm, seed)
        return found

    # ---- what is trained on

    def _make(self, made: Path) -> None:
        scale = self.scale
        trained, heldout = compounds(made / "records", scale.trained, scale.heldout)
        documents = {
            "raw": [*raw_documents(trained), *raw_documents(heldout)],
            "fluent": [*fluent_documents(trained, scale.variants), *fluent_documents(heldout, scale.variants)],
        }
        others = {source.name: source for source in (*SOURCES, *SCIENCE)}
        for name in ("thermo", "code", "prose"):
            documents[name] = without_names(others[name].read(), (trained, heldout), scale.characters)
        tokenizer = made / "tokenizer.json"
        seen = {name: [one for one in some if one.origin != HELDOUT] for name, some in documents.items()}
        train_tokenizer(seen, scale.vocab_size).save(str(tokenizer))
        facts: dict[str, Any] = {"records": {"trained": len(trained.records), "held out": len(heldout.records)}}
        for source, some in documents.items():
            for group in (False, True):
                name = f"{source}_with_prefix" if group else source
                domain: Any = DOMAIN[source]
                manifest = tokenize_source(
                    some,
                    tokenizer,
                    made / "corpora" / name,
                    name=name,
                    domain=domain,
                    group=domain if group else None,
                    prefixes=PREFIXES if group else None,
                    heldout_fraction=0.0 if source in RECORDS else 0.02,
                    heldout_origins=[HELDOUT] if source in RECORDS else [],
                    workers=0,
                )
                facts[name] = {"tokens": manifest["tokens"], "documents": manifest["documents"]}
        for arm in scale.arms:
            path = made / "recipes" / "data" / f"{short(arm)}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(data_of(ARMS[arm], scale, facts), sort_keys=False))
        asked = questions(trained, heldout, seen["fluent"], scale.asked)
        (made / "questions.json").write_text(json.dumps([asdict(one) for one in asked]))
        (made / "facts.json").write_text(json.dumps(facts))

    # ---- one run

    def _run(self, name: str, arm: str, seed: int) -> dict[str, Any]:
        kept = self.runs / f"{name}.json"
        if kept.exists():
            found: dict[str, Any] = json.loads(kept.read_text())
            return found
        print(f"-- {name}", flush=True)
        before = cpu_seconds()
        run = api.train(
            api.compose(*words_of(arm, seed, self.scale, self.corpora, self.runs), config_dirs=[self.recipes])
        )
        assert run is not None
        trained = cpu_seconds()
        answers = self._ask(run, ARMS[arm])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = {
            "arm": arm,
            "seed": seed,
            "answers": answers,
            "loss": [round(line["loss"], 4) for line in lines if "loss" in line][-1],
            "cpu_seconds": {"training": round(trained - before), "asking": round(cpu_seconds() - trained)},
        }
        partial = kept.with_suffix(".tmp")
        partial.write_text(json.dumps(found))
        partial.rename(kept)
        return found

    def _ask(self, run: Path, arm: Arm) -> list[str]:
        """A greedy answer to each question: its first line with text."""
        model = api.load(run, device="cpu")
        tokenizer = model.source.require_tokenizer()
        before = tokenizer.encode(PREFIXES["science"][0]) if arm.prefixes else []
        asked = [[*before, *tokenizer.encode(question.prompt)] for question in self.questions]
        done = model.complete(asked, ANSWER_TOKENS, temperature=0.0)
        return [next(iter((one.text or "").strip().splitlines()), "") for one in done]


def data_of(arm: Arm, scale: Scale, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The mixture of an arm, as a file of `recipes/data` has it, for T tokens; a longer run continues its one phase.
    facts: the tokens of each corpus."""
    sources = {}
    for source, share in arm.sources.items():
        name = arm.corpus(source)
        sources[source] = {
            "path": name,
            "domain": DOMAIN[source],
            "prefix": DOMAIN[source] if arm.prefixes else "",
            "tokens": int(share * scale.tokens),
            "unique_tokens": facts[name]["tokens"],
            "max_epochs": 100_000,
            "phases": {"all": float(share)},
        }
    return {
        "name": "mixture",
        "seq_len": scale.window,
        "phases": {"all": {"tokens": scale.tokens}},
        "sources": sources,
        "prefixes": PREFIXES if arm.prefixes else {},
    }


def words_of(arm: str, seed: int, scale: Scale, corpora: Path, runs: Path) -> list[str]:
    """The overrides of a run's configuration."""
    return [
        *("recipe=toy", f"data={short(arm)}", f"data.root={corpora}", *scale.model),
        *(f"model.vocab_size={scale.vocab_size}", f"train.steps={int(ARMS[arm].times * scale.steps)}"),
        *(f"train.global_batch={scale.batch}", f"train.micro_batch={scale.batch}", f"train.seed={seed}"),
        *("train.device=cpu", "train.eval_every=0", "train.eval_batches=1", "train.sample_tokens=0"),
        *(f"run.dir={runs / name_of(arm, seed)}", "checkpoint.every=200", "checkpoint.keep=1"),
        *("logging.console=plain", "logging.wandb=off"),
    ]


def read(arm: Arm, scale: Scale, facts: Mapping[str, Any]) -> dict[str, int]:
    """Tokens that a run of an arm reads: in all, of records without their prefixes, and how many of these differ."""
    source = next(iter(arm.sources))
    tokens = int(arm.times * scale.tokens)
    of_records = arm.sources[source] * tokens * facts[source]["tokens"] / facts[arm.corpus(source)]["tokens"]
    return {"tokens": tokens, "of_records": round(of_records), "unique_of_records": facts[source]["tokens"]}


def train_tokenizer(documents: dict[str, list[Document]], vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE in which every digit is a token, as in Qwen's and Intern-S1's; trained on all sources alike."""
    bpe = tokenizers.Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    size = min(sum(len(one.text) for one in some) for some in documents.values())
    sample = []
    for some in documents.values():
        left = size
        for document in some:
            sample.append(document.text)
            left -= len(document.text)
            if left <= 0:
                break
    bpe.train_from_iterator(sample, trainer=trainer)
    return bpe


def short(arm: str) -> str:
    """The name of an arm in files."""
    return arm.replace(", ", "_").replace(" ", "_")


def name_of(arm: str, seed: int) -> str:
    return f"{short(arm)}-{seed}"


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few records, steps and questions")
    parser.add_argument("--out", type=Path, default=Path("docs/study"), help="overwritten, with .json at its end")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="where corpora and runs are kept")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM-SEED", help="make these runs alone")
    options = parser.parse_args(arguments)
    options.runs.mkdir(parents=True, exist_ok=True)
    scale = QUICK if options.quick else Scale()
    study = Study(options.runs.resolve(), scale)
    found = study.run(options.only)
    if options.only:
        return 0
    figures = {
        "device": f"{cpu_name()}, torch {torch.__version__}",
        "scale": {**asdict(scale), "tokens": scale.tokens},
        "records": study.facts["records"],
        "read": {arm: read(ARMS[arm], scale, study.facts) for arm in scale.arms},
        **figures_of(study.questions, list(found.values())),
    }
    options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(*tables(figures), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
