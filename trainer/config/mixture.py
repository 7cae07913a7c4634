"""The sources and phases of a mixture, and the tokens that their weights come to; the sources of pairs, chats and
questions. No torch and no numpy here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(kw_only=True)
class SourceConfig:
    path: str  # a directory of tokenized shards, absolute or below data.root
    domain: Literal["science", "general"]  # a science source has a prefix
    modality: Literal["text", "image", "time_series"] = "text"  # in its documents beside text
    tokens: int  # tokens to draw over all phases
    unique_tokens: int  # different tokens in the source
    max_epochs: float = 1.0  # the most times that each token may be drawn
    prefix: str  # a key of data.prefixes; empty: none
    phases: dict[str, float]  # a key of data.phases -> weight in it; only the ratios within a phase count

    @property
    def max_tokens(self) -> Fraction:
        """The most tokens that may be drawn from the source."""
        return self.unique_tokens * Fraction(str(self.max_epochs))


@dataclass(kw_only=True)
class PhaseConfig:
    tokens: int  # length of the phase in tokens, over all sources


@dataclass(kw_only=True)
class PairSourceConfig:
    path: str  # a directory with img2dataset's tar files and their index, absolute or below data.root
    pairs: int  # to draw; only the ratios to those of other sources count
    max_epochs: float = 1.0  # the most times that each pair may be drawn


@dataclass(kw_only=True)
class ChatSourceConfig:
    path: str  # .jsonl, .json and .parquet files: one, a directory or a pattern, absolute or below data.root
    heldout: str = ""  # the same for chats that are never trained on; empty: data.holdout_fraction of the others
    repeat: int = 1  # times that an epoch has each chat


@dataclass(kw_only=True)
class QuestionSourceConfig:
    path: str  # a file of questions, JSON lines (.jsonl, .jsonl.gz) or .parquet, absolute or below data.root
    heldout: str = ""  # the same for questions that are never trained on; empty: data.holdout_fraction of the others


def integer_weights(weights: Iterable[float]) -> list[int]:
    """Whole numbers in the ratio of `weights`, exact to the last decimal digit that is typed."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    return [number // max(math.gcd(*numbers), 1) for number in numbers]


def shares(sources: Mapping[str, SourceConfig], phase: str) -> dict[str, Fraction]:
    """Source -> its share of a phase's samples. At least one source must have a weight above 0 in the phase."""
    weights = integer_weights(source.phases.get(phase, 0.0) for source in sources.values())
    return {name: Fraction(weight, sum(weights)) for name, weight in zip(sources, weights, strict=True)}


def drawn(
    sources: Mapping[str, SourceConfig], phases: Mapping[str, PhaseConfig], tokens: int | None = None
) -> dict[str, Fraction]:
    """Source -> tokens that the weights give it out of the first `tokens` of the mixture (None: of all phases). The
    last phase continues beyond its own tokens."""
    given, last = dict.fromkeys(sources, Fraction(0)), [*phases][-1]
    left = sum(phase.tokens for phase in phases.values()) if tokens is None else tokens
    for name, phase in phases.items():
        here = left if name == last else min(left, phase.tokens)
        for source, share in shares(sources, name).items():
            given[source] += share * here
        left -= here
    return given
