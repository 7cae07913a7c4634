"""A step on every layout of ranks, under every schedule, against one process in fp64: loss, every gradient, its norm,
the clipped update, counts and the routers' statistics. CI runs `make test-layouts ARGS=--pairs`, each pair
of two options."""

from __future__ import annotations

import pytest

from tests.trainer.stages.covering import cover, pairs_of, values_of
from tests.trainer.stages.matrix import OPTIONS, calls, case_of, faults, pairs_of_options, product_of_options, run_cases

CHOICES = pairs_of_options()


def test_each_pair_of_two_options_is_covered():
    possible = set().union(*map(pairs_of, product_of_options()))
    assert set().union(*map(pairs_of, CHOICES)) == possible
    assert {value for pair in possible for value in pair} == {(k, v) for k, values in OPTIONS.items() for v in values}
    assert len(CHOICES) < 1.2 * len(OPTIONS["layout"]) * len(OPTIONS["schedule"])


def test_each_option_of_four_ranks_equals_one_process():
    few = [choice for choice in product_of_options() if choice["layout"].ranks == 4]
    cases = [case_of(choice) for choice in cover(few, values_of)]
    assert [fault for case, found in run_cases(cases) for fault in faults(case, found)] == []


@pytest.mark.slow
@pytest.mark.parametrize("cases", calls([case_of(choice) for choice in CHOICES]), ids=lambda _: "ranks")
def test_each_pair_of_two_options_equals_one_process(cases):
    assert [fault for case, found in run_cases(cases) for fault in faults(case, found)] == []
