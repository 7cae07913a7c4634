"""The plan of a ring without its ranks: what is cut, computed and sent, against a look at every pair of tokens."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest

from parallel.context.plan import Block, RingPlan
from parallel.context.slices import slices


def drawn(seed: int) -> tuple[list[int], int]:
    """Bounds of documents of any length, and a number of ranks."""
    draw = random.Random(seed)
    lengths = [draw.choice([1, 2, draw.randint(1, 9), draw.randint(1, 30)]) for _ in range(draw.randint(1, 8))]
    return [0, *accumulate(lengths)], draw.randint(2, 8)


def positions(plan: RingPlan, rank: int) -> list[int]:
    return [position for piece, _ in plan.pieces[rank] for position in piece]


def messages(plans: list[RingPlan]) -> list[list[list[int]]]:
    """Positions of the keys of the messages of each distance, by rank, from what the other ranks' plans send."""
    ranks, found = len(plans), []
    for number in range(ranks - 1):
        found.append([[] for _ in plans])
        for rank, plan in enumerate(plans):
            for index, way in enumerate(plan.hops[number].ways):
                before = (rank - way.direction) % ranks
                if number == 0:
                    own = positions(plans[before], before)
                    sent = [own[row] for rows in plans[before].sent[index] for row in rows]
                else:
                    sent = found[number - 1][before][plans[before].hops[number - 1].ways[index].onward]
                assert len(sent) == way.rows.stop - way.rows.start
                found[number][rank] += sent
            assert len(found[number][rank]) == plan.hops[number].size
    return found


def pairs(blocks: list[Block], queries: list[int], keys: list[int]) -> list[tuple[int, int]]:
    return [(q, k) for block in blocks for q in queries[block.q] for k in keys[block.k]]


@pytest.mark.parametrize("seed", range(30))
def test_every_pair_of_tokens_is_computed_once_by_the_rank_of_the_query(seed):
    bounds, ranks = drawn(seed)
    expected = [(q, k) for start, end in pairwise(bounds) for q in range(start, end) for k in range(start, q + 1)]
    plans, found = [RingPlan(bounds, ranks, rank) for rank in range(ranks)], []
    arriving = messages(plans)
    for rank, plan in enumerate(plans):
        own, start = positions(plan, rank), 0
        for length in plan.lengths:
            found += [(own[start + q], own[start + k]) for q in range(length) for k in range(q + 1)]
            start += length
        assert start == len(own) == plan.tokens
        found += pairs(plan.own_blocks, own, own)
        for hop, of_distance in zip(plan.hops, arriving, strict=True):
            found += pairs(hop.blocks, own, of_distance[rank])
    assert sorted(found) == expected


@pytest.mark.parametrize("seed", range(30))
def test_both_ends_of_a_transfer_plan_the_same(seed):
    """Gradients: what a rank sends on is what the next one adds, and what goes home is what the owner expects."""
    bounds, ranks = drawn(seed)
    plans = [RingPlan(bounds, ranks, rank) for rank in range(ranks)]
    returned = 0
    for rank, plan in enumerate(plans):
        for number, hop in enumerate(plan.hops):
            for index, way in enumerate(hop.ways):
                sum_in, sum_onward, home = (rows.stop - rows.start for rows in (way.sum_in, way.sum_onward, way.home))
                owner, next_rank = plans[(rank - way.direction * hop.distance) % ranks], (rank + way.direction) % ranks
                assert sum(map(len, owner.hops[number].ways[index].returned)) == home
                returned += home
                following = plans[next_rank].hops[number + 1].ways[index].sum_in if number + 2 < ranks else slice(0, 0)
                assert following.stop - following.start == sum_onward
                if number == 0:
                    assert sum_in == 0
    assert returned == sum(len(rows) for plan in plans for way in plan.sent for rows in way)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_halves_of_a_long_document_cost_all_ranks_the_same_at_every_distance(ranks):
    bounds = [0, 2 * ranks * 5]
    for rank in range(ranks):
        plan = RingPlan(bounds, ranks, rank)
        assert plan.lengths == [5, 5]
        costs = [sum(len(range(100)[b.q]) * len(range(100)[b.k]) for b in hop.blocks) for hop in plan.hops]
        assert costs == [2 * 25] * (ranks - 1)
        assert all(len(hop.blocks) == 1 for hop in plan.hops)  # one kernel a hop


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize(("tokens", "ranks"), [(32, 4), (30, 4), (12, 3), (7, 8), (1, 2), (33, 2)])
def test_slices_are_the_sequence(kind, tokens, ranks):
    found = slices(kind, tokens, ranks)
    assert sorted(position for pieces in found for piece in pieces for position in piece) == list(range(tokens))
    totals = [sum(map(len, pieces)) for pieces in found]
    assert max(totals) - min(totals) == (tokens % ranks > 0)
    assert max(len(pieces) for pieces in found) <= (1 if kind == "ulysses" else 2)


def test_a_ring_has_early_and_late_chunks():
    assert slices("ring", 12, 2) == [[range(3), range(9, 12)], [range(3, 6), range(6, 9)]]
    assert slices("ring", 10, 2) == [[range(2), range(7, 10)], [range(2, 4), range(4, 7)]]  # 5 tokens each
    assert slices("ulysses", 10, 2) == [[range(5)], [range(5, 10)]]
