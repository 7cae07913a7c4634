"""A step of the layer's bench at a tiny size: what it sends and waits for, not how long it takes."""

from __future__ import annotations

import importlib.util

import pytest

from tests.bench.moe_layer import (
    ALL_TO_ALL,
    EP,
    FIXED_ORDER,
    MEGATRON,
    REDUCE_SCATTER,
    SHIPPED,
    Shape,
    measure,
)
from tests.distributed.pool import on_ranks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this Python or platform"
)

SHAPE = Shape(hidden=64, width=16, tokens=32)


@pytest.mark.slow
def test_the_all_gather_sends_no_more_in_fewer_collectives_and_never_waits():
    by_rank = on_ranks(EP, measure, SHAPE, 1, 1, init=True)
    for traffic, times in by_rank:
        assert all(len(turns) == 1 and turns[0][1] > turns[0][0] for turns in times.values())
        theirs = traffic[MEGATRON]
        assert theirs.collectives == 7
        assert traffic[SHIPPED] == theirs
        assert theirs.waits > 0
        assert theirs.copies > 0
        assert (traffic[ALL_TO_ALL].copies, traffic[ALL_TO_ALL].waits) == (1, 1)
        for name in (REDUCE_SCATTER, FIXED_ORDER):
            ours = traffic[name]
            assert ours.collectives == 4
            assert (ours.copies, ours.waits) == (0, 0)
            # As many hidden states, and beside them no more than ids and weights of all slots there, weights back.
            assert ours.sent - theirs.sent <= (EP - 1) * SHAPE.tokens * 4 * 3 * SHAPE.per_token
