"""Check expansions, and map each expert of an expanded model to the source's expert that it copies. No torch here.

`halves` cuts the source's experts into P = groups / factor parts of E / P, and each part fills `factor` router groups:
set s of the groups, s*P ... s*P + P - 1, holds every expert once. A token then gets the best K / groups experts of each
part, each `factor` times, that is the renormalised union of the parts' best.

Legend: E experts of the source · K experts per token of the expanded model · P parts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from parallel.errors import Fault, one_of
from trainer.config.model import ModelConfig
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.weights.upcycle.errors import UpcycleError

if TYPE_CHECKING:
    from trainer.weights.upcycle.coactivation import Counts

Strategy = Literal["halves", "coactivation", "spread"]
Cut = Sequence[Sequence[int]]  # parts, each a sorted list of the source's experts
NEAREST = 3  # values that an error suggests
# Less would leave all but a few numbers in a thousand of bf16 copies equal, and nothing would report that.
LEAST_NOISE = 1e-5
# Far outside, gate rows divided by the temperature become zero or infinite in the dtypes of checkpoints.
COLDEST, HOTTEST = 1e-3, 1e3

# Defaults of FoPE: those of the model that expansions are made for (Intern-S1-Pro's config.json).
FOPE_THETA, FOPE_MAX_POSITION, FOPE_GAIN = 5e6, 262_144, 0.5


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A requested expansion. Its values are JSON values: they are written to the manifest unchanged."""

    factor: int  # copies of every expert
    groups: int  # router groups
    experts_per_token: int | None = None  # None: as many as the source's
    strategy: Strategy = "halves"
    cuts: Literal["same", "distinct"] = "same"  # distinct: each set of P groups has parts of its own
    noise: float = 1e-2  # std of the noise on copies and their gate rows, relative to the matrix's RMS
    seed: int = 0
    force: bool = False  # allow factor = groups
    positions: Literal["keep", "fope"] = "keep"
    rope_theta: float | None = None  # None: with fope the published model's value, otherwise the source's
    max_position: int | None = None  # the same
    fope_gain: float | None = None  # None: the published model's; 0: mixing matrices of exactly I
    router_temperature: float = 1.0  # gate rows are divided by it
    vocabulary: str | None = None  # directory of the expanded model's tokenizer; None: the source's
    vocab_size: int | None = None  # rows of embedding and LM head; None: as many as the tokenizer needs

    def picks(self, of_source: int) -> int:
        """Experts per token of the expanded model."""
        return of_source if self.experts_per_token is None else self.experts_per_token


@dataclass(frozen=True)
class CopyPlacement:
    """source_of[layer][d]: the source's expert that expert d, in group d // (factor * E / groups), is a copy of."""

    experts: int  # E
    factor: int
    groups: int
    noise: bool
    source_of: list[list[int]]

    @property
    def per_group(self) -> int:
        return self.factor * self.experts // self.groups

    def experts_of_groups(self, layer: int) -> list[list[int]]:
        """The source's experts in each group."""
        row, n = self.source_of[layer], self.per_group
        return [row[first : first + n] for first in range(0, len(row), n)]

    def copies(self, layer: int) -> list[list[int]]:
        """For each of the source's experts, its copies."""
        found: list[list[int]] = [[] for _ in range(self.experts)]
        for copy, expert in enumerate(self.source_of[layer]):
            found[expert].append(copy)
        return found

    @property
    def identical(self) -> bool:
        """True if some copies receive the same gradients forever: without noise, if they are in one group or in groups
        that hold the same experts. Such groups select alike, and the gradients of what they select are equal."""
        if self.noise:
            return False
        for layer in range(len(self.source_of)):
            groups = [tuple(sorted(group)) for group in self.experts_of_groups(layer)]
            if len(set(groups)) < len(groups) or any(len(set(group)) < len(group) for group in groups):
                return True
        return False

    def facts(self) -> dict[str, Any]:
        """For the manifest: the experts of every group, and counts of them."""
        layers = range(len(self.source_of))
        copies = [len(copy) for layer in layers for copy in self.copies(layer)]
        held = [group for layer in layers for group in self.experts_of_groups(layer)]
        twice = sum(sum(n > 1 for n in Counter(group).values()) for group in held)
        return {
            "experts": self.experts,
            "factor": self.factor,
            "groups": self.groups,
            "fewest_copies_of_an_expert": min(copies),
            "most_copies_of_an_expert": max(copies),
            "experts_twice_in_a_group": twice,
            "layers": [[" ".join(map(str, group)) for group in self.experts_of_groups(layer)] for layer in layers],
        }


@dataclass(frozen=True)
class _Shape:
    """The sizes that an expansion must fit."""

    experts: int
    per_token: int
    strategy: Strategy
    force: bool

    def why_not(self, factor: int, groups: int) -> str | None:
        """The reason that this factor and number of groups do not work, or None."""
        if factor < 1 or groups < 1:
            return f"--factor={factor} with --groups={groups}: both must be 1 or more"
        if self.per_token < 1:
            return f"--experts-per-token={self.per_token} must be 1 or more"
        if self.per_token % groups:
            return f"--groups={groups} must divide the {self.per_token} experts per token"
        if self.strategy == "spread":
            if self.experts % groups:
                return f"--groups={groups} must divide the source's {self.experts} experts"
            if self.per_token > factor * self.experts:
                return f"there are only {factor * self.experts} experts for {self.per_token} per token"
            return None
        if groups % factor:
            return f"--factor={factor} must divide --groups={groups}"
        parts = groups // factor
        if self.experts % parts:
            return f"{self.experts} experts cannot be cut into --groups / --factor = {parts} equal parts"
        if self.per_token // groups > self.experts // parts:
            picks, held = self.per_token // groups, self.experts // parts
            return f"a token needs {picks} experts of each group, which holds {held}"
        if factor == groups > 1 and not self.force:
            return (
                f"--factor={factor} with --groups={groups} puts every expert in every group, so all groups select "
                "alike (--force allows it)"
            )
        return None

    def nearest(self, factor: int, groups: int) -> tuple[str, tuple[tuple[int, int], ...], tuple[int, ...]]:
        """The closest that works, as text: pairs of factors and groups, or if there are none, numbers of experts
        per token with this pair."""
        all_groups = [g for g in range(1, self.per_token + 1) if self.per_token % g == 0]
        pairs = [(f, g) for g in all_groups for f in range(2, 2 * max(g, factor) + 1) if not self.why_not(f, g)]
        with_groups = sorted({f for f, g in pairs if g == groups}, key=lambda f: abs(f - factor))[:NEAREST]
        with_factor = sorted({g for f, g in pairs if f == factor}, key=lambda g: abs(g - groups))[:NEAREST]
        if with_groups or with_factor:
            texts = [f"with --groups={groups} use --factor={one_of(sorted(with_groups))}"] if with_groups else []
            texts += [f"with --factor={factor} use --groups={one_of(sorted(with_factor))}"] if with_factor else []
            return "; ".join(texts), (*((f, groups) for f in with_groups), *((factor, g) for g in with_factor)), ()
        if pairs:
            f, g = min(pairs, key=lambda pair: abs(pair[0] - factor) / factor + abs(pair[1] - groups) / groups)
            return f"the nearest combination that works is --factor={f} with --groups={g}", ((f, g),), ()
        text = f"nothing works with {self.experts} experts and {self.per_token} per token"
        if others := sorted(self._other_picks(factor, groups)):
            text += f"; with --factor={factor} and --groups={groups} use --experts-per-token={one_of(others)}"
        return text, (), tuple(others)

    def _other_picks(self, factor: int, groups: int) -> list[int]:
        """The closest numbers of experts per token that this factor and number of groups work with."""
        most = factor * self.experts
        found = [k for k in range(groups, most + 1, groups) if not replace(self, per_token=k).why_not(factor, groups)]
        return sorted(found, key=lambda k: abs(k - self.per_token))[:NEAREST]


def faults_of(model: ModelConfig | None, expansion: Expansion) -> list[Fault]:
    """Everything that is wrong with a request for a source of this model, each with what would work. None: with a
    request for any source."""
    found = list(_faults_of_options(expansion))
    if model is not None and model.router_groups != 1:
        text = f"the source has {model.router_groups} router groups; only a source with a single group can be expanded"
        found.append(Fault(text, "router_groups", model.router_groups, (1,)))
        return found
    if model is not None and model.positions == "fope" and expansion.positions == "fope":
        text = "the source already has FoPE; use --positions=keep"
        found.append(Fault(text, "--positions", "fope", ("keep",)))
    if model is None:
        return [*found, *_faults_of_sizes(expansion)]
    try:
        _require(model.num_experts, expansion.picks(model.experts_per_token), expansion)
    except UpcycleError as error:
        found += error.faults
    return found


def check(model: ModelConfig, expansion: Expansion) -> None:
    """Raise UpcycleError, with what would work, if a source of this model cannot be expanded like this."""
    if faults := faults_of(model, expansion):
        raise UpcycleError(faults)


def _faults_of_options(expansion: Expansion) -> Iterator[Fault]:
    if expansion.noise != 0 and not LEAST_NOISE <= expansion.noise < 1:
        allowed = f"0, or {LEAST_NOISE:g} to below 1, such as 0.01"
        text = f"--noise={expansion.noise:g} is not supported; use {allowed}"
        yield Fault(text, "--noise", expansion.noise, allowed)
    if not COLDEST <= expansion.router_temperature <= HOTTEST:
        allowed = f"{COLDEST:g} to {HOTTEST:g}"
        text = f"--router-temperature={expansion.router_temperature:g} is not supported; use {allowed}"
        yield Fault(text, "--router-temperature", expansion.router_temperature, allowed)
    if expansion.cuts == "distinct" and expansion.strategy == "spread":
        text = "--cuts=distinct needs --strategy=halves or coactivation; spread makes no cuts"
        yield Fault(text, "--strategy", "spread", ("halves", "coactivation"))
    if expansion.positions == "keep":
        for key in ("rope_theta", "max_position", "fope_gain"):
            if (value := getattr(expansion, key)) is not None:
                option = f"--{key.replace('_', '-')}"
                yield Fault(f"{option} applies only with --positions=fope", option, value, "--positions fope")
        return
    for option, number, least in (("--rope-theta", expansion.rope_theta, 1.0), ("--fope-gain", expansion.fope_gain, 0)):
        if number is not None and not least <= number < float("inf"):
            allowed = f"{least:g} or more"
            yield Fault(f"{option}={number:g} is not supported; use {allowed}", option, number, allowed)


def _faults_of_sizes(expansion: Expansion) -> Iterator[Fault]:
    """Factors and groups that suit no source."""
    factor, groups, per_token = expansion.factor, expansion.groups, expansion.experts_per_token
    for option, number in (("--factor", factor), ("--groups", groups), ("--experts-per-token", per_token)):
        if number is not None and number < 1:
            yield Fault(f"{option}={number} is not supported; use 1 or more", option, number, "1 or more")
    if min(factor, groups) < 1:
        return
    if expansion.strategy != "spread" and groups % factor:
        text = f"--factor={factor} must divide --groups={groups}"
        yield Fault(text, "--factor, --groups", (factor, groups), f"a divisor of {groups}")
    if per_token is not None and per_token % groups:
        text = f"--groups={groups} must divide --experts-per-token={per_token}"
        yield Fault(text, "--groups", groups, f"a divisor of {per_token}")


def place_copies(
    experts: int,
    per_token: int,
    expansion: Expansion,
    layers: int,
    counts: Counts | None = None,
    progress: OnProgress = ignore,
) -> CopyPlacement:
    """Assign the copies of the source's experts to router groups.

    Args:
        counts: those of the source, one row a layer; needed for strategy=coactivation.
        progress: called after each layer's search for a cut (coactivation; seconds each).
    Raises: UpcycleError, with what would work.
    """
    _require(experts, per_token, expansion)
    if expansion.strategy == "spread":
        source_of = [[expert for expert in range(experts) for _ in range(expansion.factor)] for _ in range(layers)]
    else:
        if expansion.strategy == "coactivation" and counts is None:
            raise UpcycleError(
                "--strategy=coactivation needs --counts FILE, which octavo upcycle --calibrate writes",
                where="--counts",
                allowed="a file that octavo upcycle --calibrate wrote",
            )
        source_of = []
        for layer in range(layers):
            source_of.append(_fill_groups(_cuts(experts, expansion, layer, counts), expansion))
            if expansion.strategy == "coactivation":
                progress(Progress("choosing cuts", layer + 1, layers, "layers"))
    return CopyPlacement(experts, expansion.factor, expansion.groups, expansion.noise > 0, source_of)


def expanded_model(model: ModelConfig, expansion: Expansion, vocab_size: int) -> ModelConfig:
    """Sizes of the model that an expansion of `model` makes. Raises UpcycleError as `check`."""
    check(model, expansion)
    expanded = replace(
        model,
        num_experts=model.num_experts * expansion.factor,
        router_groups=expansion.groups,
        experts_per_token=expansion.picks(model.experts_per_token),
        vocab_size=vocab_size,
    )
    if expansion.positions == "keep":
        return expanded
    expanded = replace(
        expanded,
        positions="fope",
        rope_theta=FOPE_THETA if expansion.rope_theta is None else expansion.rope_theta,
        max_position=FOPE_MAX_POSITION if expansion.max_position is None else expansion.max_position,
        fope_gain=FOPE_GAIN if expansion.fope_gain is None else expansion.fope_gain,
    )
    if expanded.max_position < 1 or not expanded.fope_frequencies():
        raise UpcycleError(
            f"--max-position={expanded.max_position} is too small for FoPE; use more than 6",
            where="--max-position",
            value=expanded.max_position,
            allowed="more than 6",
        )
    return expanded


def _require(experts: int, per_token: int, expansion: Expansion) -> None:
    shape = _Shape(experts, per_token, expansion.strategy, expansion.force)
    if (reason := shape.why_not(expansion.factor, expansion.groups)) is not None:
        near, pairs, picks = shape.nearest(max(1, expansion.factor), max(1, expansion.groups))
        raise UpcycleError(
            f"--strategy={expansion.strategy} is not possible for this source: {reason}; {near}",
            where="--experts-per-token" if picks else "--factor, --groups",
            value=per_token if picks else (expansion.factor, expansion.groups),
            allowed=picks or pairs or None,
        )


def _fill_groups(cuts: Sequence[Cut], expansion: Expansion) -> list[int]:
    return [expert for number in range(expansion.factor) for part in cuts[number % len(cuts)] for expert in part]


def _cuts(experts: int, expansion: Expansion, layer: int, counts: Counts | None) -> Sequence[Cut]:
    """One cut for each set of groups, or one for all of them."""
    parts = expansion.groups // expansion.factor
    wanted = expansion.factor if expansion.cuts == "distinct" else 1
    if counts is not None and expansion.strategy == "coactivation":
        from trainer.weights.upcycle.coactivation import best_cuts

        try:
            return best_cuts(counts.pairs[layer], parts, wanted, expansion.seed)
        except ValueError as error:
            raise _too_few_cuts(str(error)) from error
    found: list[Cut] = []
    for number in range(100 * wanted):
        order = list(range(experts))
        random.Random(f"{expansion.seed}/{layer}/{number}").shuffle(order)
        size = experts // parts
        cut = sorted(sorted(order[first : first + size]) for first in range(0, experts, size))
        if cut not in found:
            found.append(cut)
        if len(found) == wanted:
            return found
    raise _too_few_cuts(f"{experts} experts have fewer than {wanted} different cuts into {parts} parts")


def _too_few_cuts(reason: str) -> UpcycleError:
    text = f"--cuts=distinct: {reason}; use --cuts=same"
    return UpcycleError(text, where="--cuts", value="distinct", allowed=("same",))
