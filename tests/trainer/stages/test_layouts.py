"""A step on every layout of ranks, under every schedule, against one process in fp64: loss, every gradient, its norm,
the clipped update, counts and the routers' statistics."""

from __future__ import annotations

import pytest

from tests.trainer.stages.covering import cover, pairs_of, values_of
from tests.trainer.stages.matrix import OPTIONS, calls, case_of, faults, product_of_options, run_cases

CHOICES = cover(product_of_options(), pairs_of)


def test_each_pair_of_two_options_is_covered():
    possible = set().union(*map(pairs_of, product_of_options()))
    assert set().union(*map(pairs_of, CHOICES)) == possible
    assert {value for pair in possible for value in pair} == {(k, v) for k, values in OPTIONS.items() for v in values}
    assert len(CHOICES) < 1.2 * len(OPTIONS["layout"]) * len(OPTIONS["schedule"])


@pytest.mark.parametrize(
    "cases", calls([case_of(choice) for choice in cover(product_of_options(), values_of)]), ids=lambda _: "ranks"
)
def test_each_option_equals_one_process(cases):
    assert [fault for case, found in run_cases(cases) for fault in faults(case, found)] == []


@pytest.mark.slow
@pytest.mark.parametrize("cases", calls([case_of(choice) for choice in CHOICES]), ids=lambda _: "ranks")
def test_each_pair_of_two_options_equals_one_process(cases):
    assert [fault for case, found in run_cases(cases) for fault in faults(case, found)] == []
