"""Mixtures that do not add up: tokens, weights, phases and prefixes that contradict each other."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

from parallel.errors import Fault, one_of
from trainer.config.keys import DataConfig
from trainer.config.mixture import drawn, shares
from trainer.config.model import ModelConfig
from trainer.config.say import did_you_mean

# Weights are typed with few digits; the tokens that they come to may miss a source's tokens by this share of them.
ROUNDING = Fraction(1, 200)
TOWERS = {"image": "vision", "time_series": "signals"}  # the key of the model's tower for a modality
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # keys of sources, phases and prefixes are parts of dotted keys
COUNT = "1 or more"


def check(data: DataConfig) -> list[Fault]:
    """Faults of the section `data` outside its mixture."""
    if 0 < data.holdout_fraction < 1:
        return []
    text = f"data.holdout_fraction={data.holdout_fraction:g} must be between 0 and 1; use a value such as 0.02"
    return [Fault(text, "data.holdout_fraction", data.holdout_fraction, "between 0 and 1, such as 0.02")]


def check_mixture(data: DataConfig) -> list[Fault]:
    """Everything in a mixture that does not add up. `data.seq_len` must be positive."""
    if data.name != "mixture":
        return [*_without_mixture(data)]
    numbers, phases = [*_numbers(data)], [*_phases(data)]
    faults = [*_names(data), *numbers, *_sources(data), *phases, *_prefixes(data)]
    for key in ("sources", "phases"):
        if not getattr(data, key):
            text = f"data.{key} is empty; data.name=mixture needs one or more"
            faults.append(Fault(text, f"data.{key}", {}, "one or more"))
    # Sums over numbers that are reported already would only report them again, or divide by zero.
    if data.sources and data.phases and not numbers:
        faults += [*_totals(data), *_lengths(data)]
        faults += _weights(data) if not phases else []
    return faults


def check_towers(data: DataConfig, model: ModelConfig) -> list[Fault]:
    """Sources of images or signals without the model's tower for them."""
    toy = data.build == "toy"
    other = "toy_multimodal" if toy else "intern_s1_pro (toy_multimodal for a trial)"
    advice = f"choose a model with it, such as model={other}, or leave the source out"
    advice += ", as data=toy_mixture does" if toy else ", as data=cpt_6t_text does for data=cpt_6t"
    faults = []
    for name, source in data.sources.items():
        key, tower = f"data.sources.{name}.modality", TOWERS.get(source.modality)
        if tower is not None and getattr(model, tower) is None:
            text = f"{key}={source.modality} needs model.{tower}, and this model has none"
            faults.append(Fault(f"{text}; {advice}", key, source.modality, ("text",)))
    return faults


def check_length(data: DataConfig, steps: int, batch: int) -> list[Fault]:
    """A run of `steps` steps of `batch` samples that continues so far past the mixture's tokens that a source would be
    drawn more often than its max_epochs allow. `check_mixture` must have found nothing."""
    found = longest(data, steps, batch)
    if found is None:
        return []
    fits, first, times = found
    wanted, total = steps * batch * data.seq_len, sum(phase.tokens for phase in data.phases.values())
    text = (
        f"train.steps={steps} needs {_show(wanted)} tokens, but data.phases have {_show(total)}: data.sources.{first} "
        f"would be drawn {times:.3g} times, but its max_epochs is {data.sources[first].max_epochs:g}; use "
        f"train.steps={fits} or less; only a new run can have a larger data.sources.{first}.max_epochs"
    )
    return [Fault(text, "train.steps", steps, f"{fits} or less")]


def longest(data: DataConfig, steps: int, batch: int) -> tuple[int, str, float] | None:
    """(the most steps of `batch` samples that the sources allow, the source that ends first, how many times `steps`
    steps would draw it), or None where `steps` steps fit. `check_mixture` must have found nothing."""
    if data.name != "mixture":
        return None
    total = sum(phase.tokens for phase in data.phases.values())
    wanted = steps * batch * data.seq_len
    if wanted <= total:
        return None
    given, last = drawn(data.sources, data.phases, wanted), shares(data.sources, [*data.phases][-1])
    over = {
        name: (given[name] - source.max_tokens) / last[name]
        for name, source in data.sources.items()
        if last[name] and given[name] > source.max_tokens * (1 + ROUNDING)
    }
    if not over:
        return None
    first = max(over, key=lambda name: over[name])
    fits = max(int(wanted - over[first]) // (batch * data.seq_len), total // (batch * data.seq_len))
    return fits, first, float(given[first] / data.sources[first].unique_tokens)


def _without_mixture(data: DataConfig) -> Iterator[Fault]:
    for key in ("sources", "phases", "prefixes"):
        if value := getattr(data, key):
            text = f"data.{key} needs data.name=mixture, and this is data.name={data.name}; leave it out"
            yield Fault(f"{text}, or choose a data option that is a mixture", f"data.{key}", tuple(value), ())
    if data.build != "none" and data.name not in ("pairs", "chat", "questions"):
        text = f"data.build={data.build} needs data.name=mixture, and this is data.name={data.name}"
        yield Fault(f"{text}; use data.build=none", "data.build", data.build, ("none",))


def _names(data: DataConfig) -> Iterator[Fault]:
    for key in ("sources", "phases", "prefixes"):
        for name in getattr(data, key):
            if not NAME.fullmatch(name):
                allowed = "letters, digits, '_' and '-'"
                yield Fault(f"data.{key}.{name}: not a valid name; use {allowed}", f"data.{key}.{name}", name, allowed)


def _numbers(data: DataConfig) -> Iterator[Fault]:
    """Numbers outside the range of their kind; those that are not finite are found with all other keys'."""
    for name, source in data.sources.items():
        at = f"data.sources.{name}"
        for key in ("tokens", "unique_tokens", "max_epochs"):
            value = getattr(source, key)
            if value <= 0:
                allowed = "a number above 0" if key == "max_epochs" else COUNT
                yield Fault(f"{at}.{key}={value:g} must be positive; use {allowed}", f"{at}.{key}", value, allowed)
        for phase, weight in source.phases.items():
            if not math.isfinite(weight) or weight < 0:
                text = f"{at}.phases.{phase}={weight:g} is not a weight; use 0 or more"
                yield Fault(text, f"{at}.phases.{phase}", weight, "0 or more")
        if not math.isfinite(source.max_epochs):
            text = f"{at}.max_epochs={source.max_epochs} must be above 0; use a number such as 1"
            yield Fault(text, f"{at}.max_epochs", source.max_epochs, "a number above 0")
    for name, phase_config in data.phases.items():
        if phase_config.tokens <= 0:
            text = f"data.phases.{name}.tokens={phase_config.tokens} must be positive; use {COUNT}"
            yield Fault(text, f"data.phases.{name}.tokens", phase_config.tokens, COUNT)


def _sources(data: DataConfig) -> Iterator[Fault]:
    owners: dict[str, str] = {}
    for name, source in data.sources.items():
        at = f"data.sources.{name}"
        if not source.path.strip():
            allowed = "the directory of its shards"
            yield Fault(f"{at}.path is empty; use {allowed}", f"{at}.path", source.path, allowed)
        elif (owner := owners.setdefault(os.path.normpath(os.path.join(data.root, source.path)), name)) != name:
            text = f"{at}.path={source.path} is also the path of data.sources.{owner}"
            yield Fault(f"{text}; use a directory of its own", f"{at}.path", source.path, "a directory of its own")


def _phases(data: DataConfig) -> Iterator[Fault]:
    known = tuple(data.phases)
    for name, source in data.sources.items():
        at = f"data.sources.{name}.phases"
        for phase in source.phases:
            if phase not in known:
                advice = f"; use {one_of(known)}{did_you_mean(phase, known)}" if known else ""
                yield Fault(f"{at}.{phase}: data.phases has no such phase{advice}", f"{at}.{phase}", phase, known)
        if not any(weight > 0 for weight in source.phases.values()):
            text = f"{at} has no weight above 0 in any phase; use weights such as {{PHASE: 1}}"
            yield Fault(text, at, source.phases, "a weight above 0 in one phase or more")
    for phase in data.phases:
        if data.sources and not any(source.phases.get(phase, 0) > 0 for source in data.sources.values()):
            text = f"data.phases.{phase}: no source has a weight in this phase; set data.sources.X.phases.{phase}"
            yield Fault(text, f"data.phases.{phase}", None, f"data.sources.X.phases.{phase} above 0")


def _prefixes(data: DataConfig) -> Iterator[Fault]:
    users: dict[str, dict[str, str]] = {}  # group -> domain -> the first source
    groups = tuple(data.prefixes)
    for name, source in data.sources.items():
        key = f"data.sources.{name}.prefix"
        if not source.prefix:
            if source.domain == "science" and groups:
                yield Fault(f"{key} is empty; a science source needs one; use {one_of(groups)}", key, "", groups)
        elif source.prefix not in groups:
            found = f"no such group in data.prefixes; use {one_of(groups)}" if groups else "data.prefixes is empty"
            text = f"{key}={source.prefix}: {found}"
            yield Fault(text + did_you_mean(source.prefix, groups), key, source.prefix, groups)
        else:
            users.setdefault(source.prefix, {}).setdefault(source.domain, name)
    for group, domains in users.items():
        if len(domains) > 1:
            sources = " and ".join(f"data.sources.{name} ({domain})" for domain, name in domains.items())
            text = f"data.prefixes.{group} is used by {sources}; give science and general sources groups of their own"
            yield Fault(text, f"data.prefixes.{group}", tuple(domains.values()), "sources of one domain")
    yield from _prefix_texts(data.prefixes)


def _prefix_texts(prefixes: Mapping[str, list[str]]) -> Iterator[Fault]:
    texts = []  # (key, group, text)
    for group, given in prefixes.items():
        if not given:
            key = f"data.prefixes.{group}"
            yield Fault(f"{key} is empty; give it one text or more", key, given, "one text or more")
        texts += [(f"data.prefixes.{group}[{place}]", group, text) for place, text in enumerate(given)]
    for key, _, text in texts:
        if not text.strip():
            yield Fault(f"{key} is empty; for no prefix, set the source's prefix to ''", key, text, "a text")
    for (one, group, a), (other, other_group, b) in combinations((item for item in texts if item[2].strip()), 2):
        if a == b:
            yield Fault(f"{other} is the same text as {one}; each must differ", other, b, "another text")
        elif group != other_group and (a.startswith(b) or b.startswith(a)):
            short, long = (one, other) if b.startswith(a) else (other, one)
            text = f"{long} starts with {short}, so a document cannot be attributed to one group; change one of them"
            yield Fault(text, long, b if long == other else a, f"a text that does not start with {short}")


def _totals(data: DataConfig) -> Iterator[Fault]:
    sources = sum(source.tokens for source in data.sources.values())
    phases = sum(phase.tokens for phase in data.phases.values())
    if sources != phases:
        text = (
            f"data.sources have {_show(sources)} tokens in total, but data.phases have {_show(phases)}: "
            f"{_show(abs(sources - phases))} {'too many' if sources > phases else 'missing'}; "
            f"{_one_number(data, phases - sources) or 'change the tokens of a source or of a phase'}"
        )
        yield Fault(text, "data.sources", sources, f"{_show(phases)} tokens in total")
    for name, source in data.sources.items():
        if source.tokens > source.max_tokens * (1 + ROUNDING):
            epochs = source.tokens / source.unique_tokens
            allowed = f"{_show(int(source.max_tokens))} or less"
            text = (
                f"data.sources.{name}.tokens={_show(source.tokens)} is {epochs:.3g} times its unique_tokens="
                f"{_show(source.unique_tokens)}, but its max_epochs is {source.max_epochs:g}; use tokens={allowed}, or "
                f"max_epochs={math.ceil(epochs * 100) / 100:g}"
            )
            yield Fault(text, f"data.sources.{name}.tokens", source.tokens, allowed)


def _one_number(data: DataConfig, missing: int) -> str:
    """The tokens of a source, or else of a phase, with which the sums agree and the weights fit; empty if none do.

    missing: tokens that the sources have less than the phases.
    """
    candidates = {
        f"data.sources.{name}": (source.tokens + missing, replace(data, sources={**data.sources, name: changed}))
        for name, source in data.sources.items()
        for changed in [replace(source, tokens=source.tokens + missing)]
    } | {
        f"data.phases.{name}": (phase.tokens - missing, replace(data, phases={**data.phases, name: shorter}))
        for name, phase in data.phases.items()
        for shorter in [replace(phase, tokens=phase.tokens - missing)]
    }
    for key, (tokens, changed) in candidates.items():
        if tokens >= data.seq_len and not [*_weights(changed)]:
            return f"use {key}.tokens={_show(tokens)}"
    return ""


def _weights(data: DataConfig) -> Iterator[Fault]:
    """Weights that come to other numbers of tokens than the sources ask for: one fault, as one wrong weight changes the
    shares of all sources in its phase."""
    given = drawn(data.sources, data.phases)
    total, asked = (sum(one.tokens for one in entries.values()) for entries in (data.phases, data.sources))
    if abs(Fraction(total, asked) - 1) > ROUNDING:
        return  # `_totals` reports it; with one number of tokens wrong, all weights seem so
    off = {name: abs(given[name] / source.tokens - 1) for name, source in data.sources.items()}
    wrong = [name for name in sorted(off, key=off.__getitem__, reverse=True) if off[name] > ROUNDING]
    if not wrong:
        return
    if (mended := _one_weight(data, wrong)) is not None:
        key, weight, allowed = mended
        name = key.split(".")[2]
        text = (
            f"{key}={weight:g} gives data.sources.{name} {_show(given[name])} of the phases' tokens, but its tokens "
            f"are {_show(data.sources[name].tokens)}; use {allowed}"
        )
        yield Fault(text, key, weight, (allowed,))
        return
    shown = "; ".join(
        f"data.sources.{name} gets {_show(given[name])} of {_show(data.sources[name].tokens)} tokens" for name in wrong
    )
    text = f"the weights in data.sources.X.phases do not give every source its tokens: {shown}; change their ratios"
    yield Fault(text, "data.sources", tuple(wrong), "weights that give every source its tokens")


def _one_weight(data: DataConfig, wrong: Iterable[str]) -> tuple[str, float, float] | None:
    """(key, weight, the weight that mends it all) where a single weight is wrong, with as few digits as do. wrong: the
    sources that get other tokens than they ask for, the one that is off the most first."""
    given = {phase: shares(data.sources, phase) for phase in data.phases}
    for name in wrong:
        source = data.sources[name]
        for phase, weight in source.phases.items():
            elsewhere = [given[other][name] * data.phases[other].tokens for other in given if other != phase]
            share = max(Fraction(0), Fraction(source.tokens - sum(elsewhere)) / data.phases[phase].tokens)
            others = sum(Fraction(str(one.phases.get(phase, 0))) for one in data.sources.values() if one is not source)
            if share >= 1 or not others:
                continue
            exact = float(share * others / (1 - share))
            for digits in (2, 3, 4, 6, 12):
                fits = float(f"{exact:.{digits}g}")
                changed = {**data.sources, name: replace(source, phases={**source.phases, phase: fits})}
                got = drawn(changed, data.phases)
                if all(abs(got[one] / changed[one].tokens - 1) <= ROUNDING for one in changed):
                    return f"data.sources.{name}.phases.{phase}", weight, fits
    return None


def _lengths(data: DataConfig) -> Iterator[Fault]:
    """Phases and sources that are shorter than one sample."""
    least = f"{data.seq_len} (data.seq_len) or more"
    for section, entries in (("phases", data.phases), ("sources", data.sources)):
        for name, entry in entries.items():
            if entry.tokens < data.seq_len:
                key = f"data.{section}.{name}.tokens"
                yield Fault(f"{key}={entry.tokens} is less than one sample; use {least}", key, entry.tokens, least)
    for name, source in data.sources.items():
        if source.unique_tokens <= data.seq_len:
            key = f"data.sources.{name}.unique_tokens"
            text = f"{key}={source.unique_tokens} is too short for a window of data.seq_len={data.seq_len} tokens"
            allowed = f"{data.seq_len + 1} or more"
            yield Fault(f"{text} and the token after it; use {allowed}", key, source.unique_tokens, allowed)


def _show(tokens: Fraction | int) -> str:
    """As it is typed: 5.4e12; whole numbers to their last digit."""
    short = re.sub(r"e\+?0*", "e", f"{float(tokens):.6g}")
    return str(tokens) if isinstance(tokens, int) and float(short) != tokens else short
