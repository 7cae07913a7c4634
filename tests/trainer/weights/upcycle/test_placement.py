"""Placements of copies: every expert has its copies in the right groups; others are refused with those that work."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from tests.trainer.weights.upcycle.sources import SIZES
from trainer.config.model import ModelConfig
from trainer.weights.upcycle.coactivation import Counts, survival
from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.placement import Expansion, check, expanded_model, place_copies


def counts(experts: int, layers: int, seed: int = 0) -> Counts:
    pairs = np.triu(np.random.default_rng(seed).integers(0, 100, (layers, experts, experts)), 1)
    return Counts(pairs.sum(1), pairs, int(pairs[0].sum()), "model")


CASES = [(128, 4, 8, 8), (16, 2, 8, 8), (16, 4, 8, 16), (16, 1, 4, 8), (16, 1, 1, 4), (24, 3, 6, 12)]


@pytest.mark.parametrize("cuts", ["same", "distinct"])
@pytest.mark.parametrize("strategy", ["halves", "coactivation"])
@pytest.mark.parametrize(("experts", "factor", "groups", "per_token"), CASES)
def test_every_expert_has_factor_copies_and_none_twice_in_a_group(experts, factor, groups, per_token, strategy, cuts):
    if strategy == "coactivation" and experts > 24:
        experts = 24  # searching for cuts of many experts takes seconds
    expansion = Expansion(factor=factor, groups=groups, strategy=strategy, cuts=cuts)
    placement = place_copies(experts, per_token, expansion, 3, counts(experts, 3))
    parts = groups // factor
    for layer, row in enumerate(placement.source_of):
        assert Counter(row) == dict.fromkeys(range(experts), factor)
        size = len(row) // groups
        held = [row[g * size : (g + 1) * size] for g in range(groups)]
        assert all(len(set(group)) == size for group in held)
        sets = [held[first : first + parts] for first in range(0, groups, parts)]
        for one in sets:  # P consecutive groups hold every expert once
            assert sorted(expert for group in one for expert in group) == list(range(experts))
        assert all((a == b) == (cuts == "same") for a, b in pairwise(sets)), layer
        copied = [[row[d] for d in copies] for copies in placement.copies(layer)]
        assert copied == [[e] * factor for e in range(experts)]
    facts = placement.facts()
    assert facts["fewest_copies_of_an_expert"] == facts["most_copies_of_an_expert"] == factor
    assert facts["experts_twice_in_a_group"] == 0
    told = [[[int(e) for e in group.split()] for group in layer] for layer in facts["layers"]]
    assert [[e for group in layer for e in group] for layer in told] == placement.source_of


def test_the_facts_are_counted_and_not_claimed():
    placement = place_copies(16, 8, Expansion(factor=4, groups=8), 2)
    row = placement.source_of[1]
    row[0], other = row[1], row[0]
    facts = placement.facts()
    assert facts["fewest_copies_of_an_expert"] == 3
    assert facts["most_copies_of_an_expert"] == 5
    assert facts["experts_twice_in_a_group"] == 1
    assert len(placement.copies(1)[other]) == 3


def test_random_cuts_depend_on_seed_and_layer_alone():
    def cuts(**asked):
        return place_copies(32, 8, Expansion(**{"factor": 4, "groups": 8, **asked}), 3).source_of

    assert cuts() == cuts()
    assert cuts(noise=0.5) == cuts()
    assert cuts(seed=1) != cuts()
    assert len({tuple(row) for row in cuts()}) == 3
    assert place_copies(32, 8, Expansion(factor=4, groups=8), 5).source_of[:3] == cuts()


def test_coactivation_keeps_more_of_the_best_two_than_the_random_cut():
    counted = counts(32, 2)
    asked = {"factor": 4, "groups": 8}

    def kept(placement):
        return [survival(counted.pairs[layer], placement.experts_of_groups(layer)[:2]) for layer in range(2)]

    chosen = kept(place_copies(32, 8, Expansion(**asked, strategy="coactivation"), 2, counted))
    assert all(a > b for a, b in zip(chosen, kept(place_copies(32, 8, Expansion(**asked), 2)), strict=True))


def test_spread_puts_an_experts_copies_side_by_side():
    placement = place_copies(16, 8, Expansion(factor=4, groups=8, strategy="spread"), 1)
    assert placement.source_of == [[e for e in range(16) for _ in range(4)]]
    assert placement.facts()["experts_twice_in_a_group"] == 16
    assert placement.experts_of_groups(0)[1] == [2, 2, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("asked", "identical"),
    [
        ({"noise": 0.0}, True),
        ({}, False),
        ({"noise": 0.0, "cuts": "distinct"}, False),
        ({"noise": 0.0, "strategy": "spread"}, True),
        ({"noise": 0.0, "factor": 1}, False),
        ({"noise": 0.0, "factor": 8, "force": True}, True),
    ],
)
def test_which_copies_stay_identical(asked, identical):
    assert place_copies(64, 8, Expansion(**{"factor": 4, "groups": 8, **asked}), 2).identical == identical


@pytest.mark.parametrize(
    ("experts", "per_token", "asked", "allowed"),
    [
        (128, 8, {"factor": 3, "groups": 8}, [(2, 8), (4, 8)]),
        (128, 8, {"factor": 4, "groups": 6}, [(4, 8)]),
        (128, 8, {"factor": 5, "groups": 7}, [(4, 8)]),
        (126, 8, {"factor": 2, "groups": 8}, [(4, 8), (2, 4)]),
        (4, 16, {"factor": 2, "groups": 4}, [(4, 8)]),
        (16, 4, {"factor": 4, "groups": 4}, [(2, 4)]),
        (127, 8, {"factor": 4, "groups": 8}, None),
        (16, 8, {"factor": 0, "groups": 8}, [(2, 8), (4, 8)]),
        (12, 8, {"factor": 4, "groups": 8, "strategy": "spread"}, [(4, 4), (4, 2)]),
        (16, 72, {"factor": 4, "groups": 8, "strategy": "spread"}, [(5, 8)]),
    ],
)
def test_an_undefined_expansion_is_refused_in_one_line_with_defined_ones(experts, per_token, asked, allowed):
    with pytest.raises(UpcycleError) as refused:
        place_copies(experts, per_token, Expansion(**asked), 2)
    error = refused.value
    assert (error.where, error.value) == ("--factor, --groups", (asked["factor"], asked["groups"]))
    assert (error.allowed is None) == (allowed is None)
    assert allowed is None or set(allowed) <= set(error.allowed)
    assert len(error.lines) == 1


@pytest.mark.parametrize(
    ("experts", "per_token", "allowed"), [(128, 7, (8, 16, 24)), (4, 7, (8, 16)), (16, 0, (8, 16, 24))]
)
def test_experts_per_token_that_suit_no_factor_are_refused_with_those_that_do(experts, per_token, allowed):
    error = refusal(experts, per_token, 4, 8)
    assert error is not None
    assert (error.where, error.value, error.allowed) == ("--experts-per-token", per_token, allowed)
    assert set(map(str, allowed)) <= numbers(error)
    assert len(error.lines) == 1


@pytest.mark.parametrize(
    ("experts", "asked", "where"),
    [(16, {"strategy": "coactivation"}, "--counts"), (2, {"cuts": "distinct"}, "--cuts")],
)
def test_counts_or_cuts_that_are_missing_are_refused(experts, asked, where):
    with pytest.raises(UpcycleError) as refused:
        place_copies(experts, 8, Expansion(**{"factor": 4, "groups": 8, **asked}), 2)
    assert refused.value.where == where
    assert refused.value.allowed
    assert len(refused.value.lines) == 1


def refusal(experts: int, per_token: int, factor: int, groups: int) -> UpcycleError | None:
    try:
        place_copies(experts, per_token, Expansion(factor=factor, groups=groups), 1)
    except UpcycleError as refused:
        return refused
    return None


def numbers(error: UpcycleError) -> set[str]:
    """The numbers in the text of a refusal."""
    return set(re.findall(r"\d+", error.faults[0].text))


def test_defined_expansions_are_made_and_every_offer_of_a_refusal_too():
    refusals = 0
    for experts, per_token in product((12, 16, 30, 128), (4, 6, 8, 16)):
        for factor, groups in product(range(1, 10), range(1, 17)):
            refused = refusal(experts, per_token, factor, groups)
            parts = groups / factor
            defined = (
                groups % factor == 0
                and experts % parts == 0
                and per_token % groups == 0
                and per_token / groups <= experts / parts
                and (factor < groups or groups == 1)
            )
            assert (refused is None) == defined
            if refused is not None:
                refusals += 1
                works = refused.allowed or ()
                if refused.where == "--experts-per-token":
                    assert all(refusal(experts, k, factor, groups) is None for k in works)
                    continue
                assert all({str(f), str(g)} <= numbers(refused) for f, g in works)
                assert all(refusal(experts, per_token, f, g) is None for f, g in works)
    assert refusals > 1000


@pytest.mark.parametrize(
    ("asked", "model", "where", "value"),
    [
        ({}, {"router_groups": 4}, "router_groups", 4),
        ({"noise": -1.0}, {}, "--noise", -1.0),
        ({"noise": float("nan")}, {}, "--noise", None),
        ({"noise": 1e-12}, {}, "--noise", 1e-12),
        ({"router_temperature": 0.0}, {}, "--router-temperature", 0.0),
        ({"router_temperature": 1e300}, {}, "--router-temperature", 1e300),
        ({"router_temperature": 9e-4}, {}, "--router-temperature", 9e-4),
        ({"router_temperature": float("nan")}, {}, "--router-temperature", None),
        ({"cuts": "distinct", "strategy": "spread"}, {}, "--strategy", "spread"),
        ({"fope_gain": 0.0}, {}, "--fope-gain", 0.0),
        ({"positions": "fope"}, {"positions": "fope"}, "--positions", "fope"),
        ({"positions": "fope", "max_position": 6}, {}, "--max-position", 6),
        ({"positions": "fope", "max_position": -1}, {}, "--max-position", -1),
        ({"positions": "fope", "rope_theta": 0.5}, {}, "--rope-theta", 0.5),
        ({"positions": "fope", "fope_gain": -1.0}, {}, "--fope-gain", -1.0),
        ({"factor": 3}, {}, "--factor, --groups", (3, 8)),
    ],
)  # fmt: skip
def test_an_expansion_that_does_not_suit_the_source_is_refused(asked, model, where, value):
    source = ModelConfig(**{**SIZES, **model})
    with pytest.raises(UpcycleError) as refused:
        expanded_model(source, Expansion(**{"factor": 4, "groups": 8, **asked}), 48)
    error = refused.value
    assert error.where == where
    assert error.value == value or (value is None and error.value != error.value)
    assert error.allowed
    assert len(error.lines) == 1


def test_the_expanded_models_sizes():
    source = ModelConfig(**{**SIZES, "num_experts": 128, "rope_theta": 1e6, "max_position": 32768, "head_dim": 128})
    check(source, Expansion(factor=4, groups=8))
    same = expanded_model(source, Expansion(factor=4, groups=8), 48)
    assert (same.num_experts, same.router_groups, same.experts_per_token) == (512, 8, 8)
    assert (same.positions, same.rope_theta, same.max_position) == ("rope", 1e6, 32768)
    fope = expanded_model(source, Expansion(factor=4, groups=16, experts_per_token=16, positions="fope"), 50)
    assert (fope.experts_per_token, fope.vocab_size, fope.positions) == (16, 50, "fope")
    assert (fope.rope_theta, fope.max_position, fope.fope_gain, fope.fope_frequencies()) == (5e6, 262144, 0.5, 45)


def test_placing_needs_no_torch():
    text = (
        "import sys; from trainer.weights.upcycle.placement import *; "
        "place_copies(16, 8, Expansion(factor=4, groups=8), 2).facts(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", text], check=True)
