"""Does a trained model look at its images and signals? Answers with the right ones, and with those of other documents.

    python -m tests.bench.media_used RUN [--json FILE]

RUN: the directory of a run on `data=toy_multimodal`, or on other data with documents whose questions and answers are as
in `trainer/corpora/media/questions.py`. Of every source with images or signals all held-out windows are read twice: as
they are, and with each medium replaced by that of another document with the same questions and as many tokens. Counted
are the tokens of the answers alone: the mean loss in nats, and the share of answers whose every token is the most
likely one. An answer that needs no medium would not notice; beside it is the rate of always giving the most frequent
answer to each question.

The exit code is 1 unless every source passes: with the media of others the loss must rise by `RISE` nats, and the share
of exact answers must be more than `MARGIN` above the rate of the most frequent answers with the right media, and not
with those of others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench.step import cpu_name
from trainer.config.compose import load
from trainer.config.keys import Config
from trainer.corpora.media.questions import ANSWER
from trainer.data.batch import make_batch
from trainer.data.build import build_data
from trainer.data.protocols import TextSplits, TextTokenizer
from trainer.data.windows import Prepared, Windows
from trainer.model.decoder import Decoder
from trainer.model.dual_encoder import make_decoder
from trainer.storage.boxes import full_box
from trainer.weights.opened import open_checkpoint

WINDOWS = 8  # in a forward pass
SEED = 0  # of the order in which media change places
RISE = 0.3  # nats
# Around the rate of the most frequent answers: three standard errors of a rate of 0.22 among 600 answers.
MARGIN = 0.05
REPORT_SECONDS = 5.0  # from a line about what is done to the next


@dataclass(frozen=True)
class Answer:
    """A question of a held-out document, and the tokens [first, last) of its answer in window `row`."""

    row: int
    start: int  # of the document
    question: str
    answer: str
    first: int
    last: int


@dataclass(frozen=True)
class Score:
    """Answers of a source. nats: mean loss of their tokens; exact: share of answers that are right as a whole."""

    nats: float
    exact: float


@dataclass(frozen=True)
class Result:
    source: str
    answers: int
    right: Score
    shuffled: Score
    most_frequent: float  # exact answers by always giving the most frequent one to each question

    @property
    def rise(self) -> float:
        """Nats that the right media are worth."""
        return self.shuffled.nats - self.right.nats

    def misses(self) -> list[str]:
        """The bars that are not reached, one line each."""
        bars = (
            (self.rise >= RISE, f"the loss rises by {self.rise:.2f} nats with the media of others, not by {RISE}"),
            (
                self.right.exact > self.most_frequent + MARGIN,
                f"{self.right.exact:.0%} of the answers are exact with the right media, not over "
                f"{self.most_frequent + MARGIN:.0%}",
            ),
            (
                self.shuffled.exact <= self.most_frequent + MARGIN,
                f"{self.shuffled.exact:.0%} of the answers are exact with the media of others, over "
                f"{self.most_frequent + MARGIN:.0%}",
            ),
        )
        return [f"{self.source}: {line}" for reached, line in bars if not reached]


class Progress:
    """Lines on stderr about the windows that are done, `REPORT_SECONDS` apart."""

    def __init__(self) -> None:
        self.reported = time.monotonic()

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self.reported >= REPORT_SECONDS:
            self.reported = now
            print(f"{what}: {done} of {of} windows", file=sys.stderr, flush=True)


def measure(run: Path, report: Callable[[str, int, int], None] | None = None) -> list[Result]:
    """The results of each source with images or signals. report: is called with what is read, the windows of it that
    are done, and all of them. Raises UserError for a run that cannot be opened."""
    cfg = load(run / "config.yaml", world_size=1)
    data = build_data(cfg.data, seed=cfg.train.seed, vocab_size=cfg.model.vocab_size, model=cfg.model)
    assert data.text is not None
    model = load_model(cfg, run)
    sources = [name for name, source in cfg.data.sources.items() if source.modality != "text"]
    return [_measure(model, data.text, source, report or (lambda what, done, of: None)) for source in sources]


def load_model(cfg: Config, run: Path) -> Decoder:
    """The newest checkpoint of a run, in fp32 on the CPU."""
    state = open_checkpoint(run).state
    with torch.device("meta"):
        model = make_decoder(cfg.model)
    model.to_empty(device="cpu")
    for name, tensor in model.state_dict().items():
        tensor.copy_(state.read(f"model.{name}", full_box(tuple(tensor.shape))))
    return model


def _measure(model: Decoder, text: TextSplits, source: str, report: Callable[[str, int, int], None]) -> Result:
    positions = text.positions("heldout", source, 1 << 30)
    parts = [
        text.read_split("heldout", source, some) for some in np.array_split(positions, -(-len(positions) // WINDOWS))
    ]
    answers = [[*answers_of(part, text.tokenizer)] for part in parts]
    flat = [answer for some in answers for answer in some]
    by_question = {question: Counter(a.answer for a in flat if a.question == question) for question in _questions(flat)}
    frequent = sum(max(counts.values()) for counts in by_question.values()) / len(flat)
    right = _score(model, parts, answers, lambda *done: report(f"{source}, right media", *done))
    others = _score(model, shuffled(parts, answers), answers, lambda *done: report(f"{source}, shuffled media", *done))
    return Result(source, len(flat), right, others, frequent)


def _questions(answers: Sequence[Answer]) -> set[str]:
    return {answer.question for answer in answers}


def answers_of(windows: Windows, tokenizer: TextTokenizer) -> Iterator[Answer]:
    """The answers in windows, document by document."""
    for row, tokens in enumerate(windows.tokens_BL):
        bounds = [*np.flatnonzero(windows.starts_BL[row]).tolist(), len(tokens)]
        for start, end in pairwise(bounds):
            words = [tokenizer.decode([token]) for token in tokens[start:end].tolist()]
            ends = [*accumulate(map(len, words))]
            for match in ANSWER.finditer("".join(words)):
                first = int(np.searchsorted(ends, match.start(2), side="right"))
                last = int(np.searchsorted(ends, match.end(2), side="left")) + 1
                yield Answer(row, start, match[1], match[2], start + first, start + last)


def shuffled(parts: Sequence[Windows], answers: Sequence[Sequence[Answer]]) -> list[Windows]:
    """The same windows, each medium replaced by that of another document with its questions and number of tokens."""
    groups: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number, (part, some) in enumerate(zip(parts, answers, strict=True)):
        for place, medium in enumerate(part.media):
            starts = np.flatnonzero(part.starts_BL[medium.row, : medium.first + 1])
            document = medium.row, int(starts[-1])
            asked = tuple(answer.question for answer in some if (answer.row, answer.start) == document)
            groups.setdefault((medium.kind, medium.tokens, asked), []).append((number, place))
    media: list[list[Prepared]] = [list(part.media) for part in parts]
    random = np.random.default_rng(SEED)
    for members in groups.values():
        order = [members[number] for number in random.permutation(len(members))]
        for (number, place), (other, there) in zip(order, [*order[1:], order[0]], strict=True):
            media[number][place] = media[number][place]._replace(value=parts[other].media[there].value)
    return [replace(part, media=tuple(some)) for part, some in zip(parts, media, strict=True)]


@torch.no_grad()
def _score(
    model: Decoder,
    parts: Sequence[Windows],
    answers: Sequence[Sequence[Answer]],
    report: Callable[[int, int], None],
) -> Score:
    nats, tokens, exact, count, done = 0.0, 0, 0, 0, 0
    windows = sum(len(part.tokens_BL) for part in parts)
    for part, some in zip(parts, answers, strict=True):
        batch = make_batch(part, range(len(part.tokens_BL)))
        hidden = model(**batch.model_inputs()).hidden
        ids = torch.from_numpy(part.tokens_BL)
        for answer in some:
            expected = ids[answer.row, answer.first : answer.last]
            logits = model.logits(hidden[answer.row, answer.first - 1 : answer.last - 1]).float()
            nats += float(torch.nn.functional.cross_entropy(logits, expected, reduction="sum"))
            tokens += len(expected)
            exact += bool((logits.argmax(-1) == expected).all())
            count += 1
        done += len(part.tokens_BL)
        report(done, windows)
    return Score(nats / tokens, exact / count)


def table(results: Sequence[Result]) -> str:
    head = (
        "| source | answers | loss | loss, shuffled | rise | exact | exact, shuffled | most frequent |\n" + 8 * "|---"
    )
    rows = [
        f"| {r.source} | {r.answers} | {r.right.nats:.2f} | {r.shuffled.nats:.2f} | {signed(r.rise)} "
        f"| {r.right.exact:.0%} | {r.shuffled.exact:.0%} | {r.most_frequent:.0%} |"
        for r in results
    ]
    return "\n".join([f"{head}|", *rows])


def signed(nats: float) -> str:
    """With two decimals and a sign; what rounds to 0 is +0.00."""
    return f"{round(nats, 2) + 0.0:+.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    results = measure(options.run, Progress())
    print(f"{cpu_name()}, {torch.get_num_threads()} thread(s), fp32; losses in nats per token of an answer\n")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    misses = [line for result in results for line in result.misses()]
    for line in misses:
        print(f"error: {line}", file=sys.stderr)
    return bool(misses)


if __name__ == "__main__":
    sys.exit(main())
