"""Perplexity by domain: of documents in JSONL files, or of what a run held out.

The log-probability of a passage's first token is not counted, as nothing comes before it: the perplexity of a domain is
exp(-(sum of log p) / (tokens counted)), and its bits per byte are -(sum of log2 p) / (bytes of the texts).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from trainer.config import coerce
from trainer.config.keys import DataConfig
from trainer.config.run_files import read_run
from trainer.engine.load import Source
from trainer.evaluation.asked import Failure
from trainer.evaluation.asking import Outcome
from trainer.evaluation.files import Row, find_all, read_rows
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, Summary
from trainer.storage.ledger import Ledger
from trainer.storage.progress import OnProgress, Progress
from trainer.weights.opened import OpenedCheckpoint

ROUNDING = 1e-4  # a certain token's log-probability may come out above 0 by this much


@dataclass(frozen=True)
class Passage:
    """A text, or token ids, to be scored. counted: of the ids, those whose log-probability counts; None: all behind the
    first."""

    id: str
    domain: str
    text: str | None = None
    ids: tuple[int, ...] = ()
    counted: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class PassageScore:
    """nats: -(sum of log p) of `tokens` tokens. size: bytes of the text, None for token ids."""

    nats: float
    tokens: int
    size: int | None = None


class Scorer(Protocol):
    """A model that scores passages. identity: as of `trainer.evaluation.asked.Model`."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def score(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, PassageScore | Failure]]: ...


def read_documents(directory: Path, limit: int | None) -> tuple[list[Passage], list[str]]:
    """The rows of DOMAIN.jsonl (or .json, .parquet, .csv, .tsv), whose column is "text", `limit` of each domain; and
    the file and row of each with an empty text, which has nothing to measure.

    Raises SuiteError for files without texts, and for two files of one domain."""
    found: list[Passage] = []
    empty: list[str] = []
    for path in find_all(directory, "*.jsonl", "*.parquet", "*.json", "*.csv", "*.tsv"):
        rows = 0
        for row in read_rows(path, "text"):
            if limit is not None and rows == limit:
                break
            if row.cells["text"] == "":
                empty.append(f"{path.name}:{row.number}")
            else:
                found.append(Passage(f"{path.stem}/{row.number}", path.stem, _text(row)))
                rows += 1
    if not found:
        text = f"{directory}: the files have no texts; put DOMAIN.jsonl there, with a text in each row"
        raise SuiteError(text, where=str(directory), value=0, allowed="rows with a text")
    return found, empty


def _text(row: Row) -> str:
    text = row.cells["text"]  # spaces alone are a text as well
    return text if isinstance(text, str) else row.text("text")


def read_heldout(source: Source, limit: int | None) -> tuple[list[Passage], int]:
    """The documents in windows that a run held out, by source; and the number of those left out for their media.

    limit: windows of each source; None: those that the run's own evaluations read. The value of a source is then
    exp of its held-out loss in the run's record. Raises SuiteError for what is not a run on text.
    """
    opened = source.opened
    remedy = "DIR/perplexity/DOMAIN.jsonl, with --data DIR"
    if not isinstance(opened, OpenedCheckpoint):
        raise SuiteError(f"only runs have held-out data; put texts in {remedy}", where="--data", allowed=remedy)
    tree, _ = read_run(opened.run_directory)
    data_cfg, faults = coerce.from_dict(DataConfig, tree.get("data") or {}, file=str(opened.run_directory))
    if data_cfg is None:
        raise SuiteError(faults)
    if data_cfg.name != "mixture":
        text = f"the run was trained on data.name={data_cfg.name}, which has no texts; put some in {remedy}"
        raise SuiteError(text, where="--data", value=data_cfg.name, allowed=remedy)
    from trainer.data.build import build_data

    run, train = tree.get("run") or {}, tree.get("train") or {}
    data = build_data(data_cfg, seed=run.get("seed", 0), vocab_size=source.model.vocab_size)
    assert data.text is not None
    windows = limit or train.get("eval_batches", 1) * train.get("micro_batch", 1)
    found: list[Passage] = []
    left_out = 0
    for domain in data.heldout.sources:
        positions = data.text.positions("heldout", domain, windows)
        read = data.text.read_split("heldout", domain, positions, media=False)
        for row, position in enumerate(positions.tolist()):
            tokens, context = read.tokens_BL[row].tolist(), read.context_BL[row].tolist()
            starts = [place for place, start in enumerate(read.starts_BL[row].tolist()) if start]
            for first, end in pairwise(sorted({0, *starts, len(tokens)})):
                counted = (False, *(not skipped for skipped in context[first + 1 : end]))
                ids = tuple(tokens[first:end])
                if source.placeholders.keys() & set(ids):
                    left_out += 1
                elif any(counted):
                    found.append(Passage(f"{domain}/{position}/{first}", domain, None, ids, counted))
    return found, left_out


def run_perplexity(passages: Sequence[Passage], model: Scorer, ledger: Ledger, report: OnProgress) -> Outcome:
    """Score what the ledger does not have; each score is on the disk before the next is taken.

    A passage that the model cannot take, as it exceeds the context, is left out: the value is that of the others."""
    keys = [_key(passage, model.identity) for passage in passages]
    todo = [passage for passage, key in zip(passages, keys, strict=True) if key not in ledger]
    of_passage = {passage.id: key for passage, key in zip(passages, keys, strict=True)}
    kept = done = len(passages) - len(todo)
    failures: dict[str, str] = {}
    left_out: dict[str, str] = {}
    tokens = 0
    report(Progress(PERPLEXITY.name, done, len(passages), "answers", kept))
    for passage, found in model.score(todo) if todo else ():
        done += 1
        if isinstance(found, Failure):
            (left_out if found.final else failures)[passage.id] = found.reason
        else:
            ledger.add(of_passage[passage.id], {"nats": found.nats, "tokens": found.tokens, "size": found.size})
            tokens += found.tokens
        report(Progress(PERPLEXITY.name, done, len(passages), "answers", kept, tokens))
    scored = []
    for passage, key in zip(passages, keys, strict=True):
        entry = ledger.get(key)
        if entry is not None:
            values = {name: entry[name] for name in ("nats", "tokens", "size")}
            scored.append(Scored(Item(passage.id, (), None, {"category": passage.domain}), "", values))
    tokens = sum(one.values["tokens"] for one in scored)
    return Outcome(scored, failures, left_out=left_out, kept=kept, tokens=tokens)


def _key(passage: Passage, identity: Mapping[str, Any]) -> str:
    facts = [passage.text, passage.ids, passage.counted, identity]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"perplexity/{passage.id}/{digest}"


def is_log_prob(value: Any) -> bool:
    """Return True for a finite number that is not above 0, apart from rounding."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value <= ROUNDING


def score_of(log_probs: Sequence[float], counted: Sequence[bool] | None, size: int | None) -> PassageScore:
    """log_probs, counted: of the tokens behind the first."""
    chosen = log_probs if counted is None else [p for p, counts in zip(log_probs, counted, strict=True) if counts]
    return PassageScore(-math.fsum(chosen), len(chosen), size)


def _perplexity(scored: Sequence[Scored]) -> float:
    tokens = sum(one.values["tokens"] for one in scored)
    return math.exp(math.fsum(one.values["nats"] for one in scored) / tokens) if tokens else math.nan


def _bits_per_byte(scored: Sequence[Scored]) -> float:
    size = sum(one.values["size"] for one in scored)
    return math.fsum(one.values["nats"] for one in scored) / math.log(2) / size if size else math.nan


def _summarise(scored: Sequence[Scored]) -> Summary:
    parts: dict[str, list[Scored]] = {}
    for one in scored:
        parts.setdefault(one.item.meta["category"], []).append(one)
    metrics = {}
    if all(one.values["size"] is not None for one in scored):
        metrics["bits per byte"] = _bits_per_byte(scored)
        metrics |= {f"bits per byte, {part}": _bits_per_byte(parts[part]) for part in sorted(parts)}
    return Summary(_perplexity(scored), metrics, {part: _perplexity(parts[part]) for part in sorted(parts)})


PERPLEXITY = Suite(
    "Perplexity",
    "any",
    "perplexity per token, by domain; bits per byte of files",
    "exp(-mean log p), bits -sum(log2 p) / bytes",
    "DOMAIN.jsonl with a text in each row, of your own; without files, what the run held out",
    summarise=_summarise,
    higher=False,
)
