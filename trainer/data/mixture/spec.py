"""What a recipe says about a mixture, and every way in which it can fail to add up. No torch and no numpy here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from trainer.config import coerce as schema

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

# Weights are typed with few digits; what they give may miss a source's tokens by this share of them.
ROUNDING = Fraction(1, 200)
TOWERLESS = ("image", "time_series")  # what the model has no tower for
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # keys of sources, phases and prefixes are parts of dotted keys


@dataclass(kw_only=True)
class SourceConfig:
    path: str  # a directory of tokenised shards, absolute or below data.root
    domain: Literal["science", "general"]
    modality: Literal["text", "image", "time_series"] = "text"
    tokens: int  # to be drawn over all phases
    unique_tokens: int  # that there are
    max_epochs: float = 1.0  # how often each of them may be drawn
    prefix: str  # a key of data.prefixes; empty: none
    phases: dict[str, float]  # a key of data.phases -> weight in it; only the ratios within a phase count


@dataclass(kw_only=True)
class PhaseConfig:
    tokens: int


def whole(weights: Iterable[float]) -> list[int]:
    """Whole numbers in the ratio of `weights`, exact to the last decimal digit that they are typed with."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    return [number // max(math.gcd(*numbers), 1) for number in numbers]


def drawn(data: DataConfig, tokens: int | None = None) -> dict[str, Fraction]:
    """Source -> tokens that the weights give it, of the first `tokens` of the mixture (None: of all its phases)."""
    given, last = dict.fromkeys(data.sources, Fraction(0)), [*data.phases][-1]
    left = sum(phase.tokens for phase in data.phases.values()) if tokens is None else tokens
    for name, phase in data.phases.items():
        here = left if name == last else min(left, phase.tokens)
        for source, share in shares(data, name).items():
            given[source] += share * here
        left -= here
    return given


def shares(data: DataConfig, phase: str) -> dict[str, Fraction]:
    """Source -> its share of a phase's samples; a phase must have a weight above 0."""
    weights = whole(source.phases.get(phase, 0.0) for source in data.sources.values())
    return {name: Fraction(weight, sum(weights)) for name, weight in zip(data.sources, weights, strict=True)}


def contradictions(data: DataConfig) -> list[str]:
    """Everything that does not add up, a line each that names the key and what would work; empty if all does.

    `data.seq_len` must be positive.
    """
    if data.name != "mixture":
        return [
            f"data.{key} is for data.name=mixture, and this is data.name={data.name}; leave it out, or choose a data "
            "recipe that is a mixture"
            for key in ("sources", "phases", "prefixes")
            if getattr(data, key)
        ] + ([f"data.build={data.build} is for data.name=mixture"] if data.build != "none" else [])
    numbers, phases = [*_numbers(data)], [*_phases(data)]
    errors = [*_names(data), *numbers, *_sources(data), *phases, *_prefixes(data)]
    for key in ("sources", "phases"):
        if not getattr(data, key):
            errors.append(f"data.{key} is empty; data.name=mixture needs one or more")
    # Sums over what is reported already would only say it again, or divide by zero.
    if data.sources and data.phases and not numbers:
        errors += [*_totals(data), *_lengths(data)]
        errors += _weights(data) if not phases else []
    return errors


def beyond_epochs(data: DataConfig, steps: int, batch: int) -> list[str]:
    """A line if a run of `steps` steps of `batch` samples goes on past the mixture's tokens for so long that a source
    is drawn more often than its max_epochs allow. `contradictions` must have found none."""
    if data.name != "mixture":
        return []
    total = sum(phase.tokens for phase in data.phases.values())
    wanted = steps * batch * data.seq_len
    if wanted <= total:
        return []
    given, last = drawn(data, wanted), shares(data, [*data.phases][-1])
    over = {
        name: (given[name] - _allowed(source)) / last[name]
        for name, source in data.sources.items()
        if last[name] and given[name] > _allowed(source) * (1 + ROUNDING)
    }
    if not over:
        return []
    first = max(over, key=lambda name: over[name])
    fits = max(int(wanted - over[first]) // (batch * data.seq_len), total // (batch * data.seq_len))
    source = data.sources[first]
    return [
        f"train.steps={steps} takes {_show(wanted)} tokens and data.phases have {_show(total)}: data.sources.{first} "
        f"would be drawn {float(given[first] / source.unique_tokens):.3g} times, and its max_epochs is "
        f"{source.max_epochs:g}; use train.steps={fits} or less, or raise data.sources.{first}.max_epochs"
    ]


def _names(data: DataConfig) -> Iterator[str]:
    for key in ("sources", "phases", "prefixes"):
        for name in getattr(data, key):
            if not NAME.fullmatch(name):
                yield f"data.{key}.{name}: no name; use letters, digits, '_' and '-'"


def _numbers(data: DataConfig) -> Iterator[str]:
    """Numbers outside the range of their kind; those that are not finite are found with all other keys'."""
    for name, source in data.sources.items():
        for key in ("tokens", "unique_tokens", "max_epochs"):
            if getattr(source, key) <= 0:
                yield f"data.sources.{name}.{key}={getattr(source, key):g} must be positive"
        for phase, weight in source.phases.items():
            if not math.isfinite(weight) or weight < 0:
                yield f"data.sources.{name}.phases.{phase}={weight:g} is no weight; use 0 or more"
        if not math.isfinite(source.max_epochs):
            yield f"data.sources.{name}.max_epochs={source.max_epochs} is no number of epochs; use one such as 1"
    for name, phase_config in data.phases.items():
        if phase_config.tokens <= 0:
            yield f"data.phases.{name}.tokens={phase_config.tokens} must be positive"


def _sources(data: DataConfig) -> Iterator[str]:
    owners: dict[str, str] = {}
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        if not source.path.strip():
            yield f"{key}.path is empty; use the directory of its shards"
        elif owners.setdefault(source.path, name) != name:
            yield f"{key}.path={source.path} is also that of data.sources.{owners[source.path]}; give it its own"
        if source.modality in TOWERLESS:
            yield (
                f"{key}.modality={source.modality} needs a tower that turns it into embeddings, which the model lacks; "
                "leave the source out, as data=cpt_6t_text does"
            )


def _phases(data: DataConfig) -> Iterator[str]:
    for name, source in data.sources.items():
        for phase in source.phases:
            if phase not in data.phases:
                known = f"; use {schema.one_of(data.phases)}" if data.phases else ""
                near = schema.did_you_mean(phase, data.phases)
                yield f"data.sources.{name}.phases.{phase}: data.phases has no such phase{known}{near}"
        if not any(weight > 0 for weight in source.phases.values()):
            yield f"data.sources.{name}.phases gives it no weight in any phase; use one such as {{PHASE: 1}}"
    for phase in data.phases:
        if data.sources and not any(source.phases.get(phase, 0) > 0 for source in data.sources.values()):
            yield f"data.phases.{phase}: no source has a weight in it; set data.sources.X.phases.{phase}"


def _prefixes(data: DataConfig) -> Iterator[str]:
    users: dict[str, dict[str, str]] = {}  # group -> domain -> the first source
    for name, source in data.sources.items():
        key = f"data.sources.{name}.prefix"
        if not source.prefix:
            if source.domain == "science" and data.prefixes:
                yield f"{key} is empty; a science source begins with one of {schema.one_of(data.prefixes)}"
        elif source.prefix not in data.prefixes:
            near = schema.did_you_mean(source.prefix, data.prefixes)
            groups = schema.one_of(data.prefixes) or "no group"
            yield f"{key}={source.prefix}: data.prefixes has {groups}{near}"
        else:
            users.setdefault(source.prefix, {}).setdefault(source.domain, name)
    for group, domains in users.items():
        if len(domains) > 1:
            sources = " and ".join(f"data.sources.{name} ({domain})" for domain, name in domains.items())
            yield f"data.prefixes.{group} is used by {sources}; science and general sources need groups of their own"
    yield from _texts(data.prefixes)


def _texts(prefixes: Mapping[str, list[str]]) -> Iterator[str]:
    texts = []  # (key, group, text)
    for group, given in prefixes.items():
        if not given:
            yield f"data.prefixes.{group} is empty; give it one text or more"
        texts += [(f"data.prefixes.{group}[{place}]", group, text) for place, text in enumerate(given)]
    for key, _, text in texts:
        if not text.strip():
            yield f"{key} is empty; a source without a prefix has prefix: ''"
    for (one, group, a), (other, other_group, b) in combinations((item for item in texts if item[2].strip()), 2):
        if a == b:
            yield f"{other} is the same text as {one}; each must be another"
        elif group != other_group and (a.startswith(b) or b.startswith(a)):
            begin, longer = (one, other) if b.startswith(a) else (other, one)
            yield f"{longer} begins with {begin}, so that the groups cannot be told apart; change one of them"


def _totals(data: DataConfig) -> Iterator[str]:
    sources = sum(source.tokens for source in data.sources.values())
    phases = sum(phase.tokens for phase in data.phases.values())
    if sources != phases:
        yield (
            f"data.sources have {_show(sources)} tokens in all and data.phases {_show(phases)}: "
            f"{_show(abs(sources - phases))} {'too many' if sources > phases else 'missing'}; change the tokens of a "
            "source or of a phase"
        )
    for name, source in data.sources.items():
        if source.tokens > _allowed(source) * (1 + ROUNDING):
            epochs = source.tokens / source.unique_tokens
            yield (
                f"data.sources.{name}.tokens={_show(source.tokens)} is {epochs:.3g} times its unique_tokens="
                f"{_show(source.unique_tokens)}, and its max_epochs is {source.max_epochs:g}; use tokens="
                f"{_show(int(_allowed(source)))} or less, or max_epochs={math.ceil(epochs * 100) / 100:g}"
            )


def _weights(data: DataConfig) -> Iterator[str]:
    """Sources to which the weights give other tokens than they are to have."""
    given = drawn(data)
    off = {name: given[name] / source.tokens for name, source in data.sources.items()}
    if max(off.values()) - min(off.values()) <= ROUNDING:
        return  # the weights are right; if the sums are not, that is told
    for name, source in data.sources.items():
        if abs(off[name] - 1) > ROUNDING:
            weights = ", ".join(f"{phase}: {weight:g}" for phase, weight in source.phases.items())
            yield (
                f"data.sources.{name}.phases={{{weights}}} gives it {_show(given[name])} of the phases' tokens, and "
                f"data.sources.{name}.tokens is {_show(source.tokens)}; change one of them"
            )


def _lengths(data: DataConfig) -> Iterator[str]:
    """What a sample is too long for."""
    S = data.seq_len
    for name, phase in data.phases.items():
        if phase.tokens < S:
            yield f"data.phases.{name}.tokens={phase.tokens} is less than a sample; use {S} (data.seq_len) or more"
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        if source.tokens < S:
            yield f"{key}.tokens={source.tokens} is less than a sample; use {S} (data.seq_len) or more"
        if source.unique_tokens <= S:
            yield f"{key}.unique_tokens={source.unique_tokens} has no window of data.seq_len={S} and the next token"


def _allowed(source: SourceConfig) -> Fraction:
    """The tokens that may be drawn of it."""
    return source.unique_tokens * Fraction(str(source.max_epochs))


def _show(tokens: Fraction | int) -> str:
    """As a person would type it: 5.4e12; whole numbers to their last digit."""
    short = re.sub(r"e\+?0*", "e", f"{float(tokens):.6g}")
    return str(tokens) if isinstance(tokens, int) and float(short) != tokens else short
