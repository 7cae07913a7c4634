"""Sizes of the axes and the map from router groups to ranks: values filled in, and errors that name those that work."""

from __future__ import annotations

import pytest

from parallel.groups import Placement, map_groups
from parallel.layout import Layout, LayoutError, divisors

RESOLVED = [
    # world, asked, (dp_replicate, dp_shard, ep, expert_dp)
    (1, {}, (1, 1, 1, 1)),
    (8, {"dp_shard": 0}, (1, 8, 1, 8)),
    (8, {"dp_replicate": 0, "dp_shard": 0}, (8, 1, 1, 1)),
    (8, {"dp_replicate": 0, "dp_shard": 0, "ep": 8}, (1, 8, 8, 1)),
    (16, {"dp_replicate": 0, "dp_shard": 0, "ep": 8}, (2, 8, 8, 1)),
    (16, {"dp_shard": 0, "ep": 8}, (1, 16, 8, 2)),
    (512, {"dp_replicate": 0, "dp_shard": 64, "ep": 8}, (8, 64, 8, 8)),
    (8, {"dp_replicate": 2, "dp_shard": 4, "ep": 2}, (2, 4, 2, 2)),
    (32, {"pp": 2, "dp_shard": 0, "cp": 2, "ep": 4}, (1, 8, 4, 4)),
]


@pytest.mark.parametrize(("world", "asked", "expected"), RESOLVED)
def test_sizes_of_zero_are_filled_in(world, asked, expected):
    layout = Layout.resolve(world, **asked)
    assert (layout.dp_replicate, layout.dp_shard, layout.ep, layout.expert_dp) == expected
    assert layout.world == world == layout.pp * layout.dp_replicate * layout.expert_dp * layout.ep


REFUSED = [
    (8, {"dp_replicate": 3, "dp_shard": 0}, "dp_replicate", (1, 2, 4, 8)),
    (8, {"dp_replicate": 2, "dp_shard": 2}, "dp_shard", (0,)),
    (8, {"dp_shard": 0, "ep": 3}, "ep", (1, 2, 4, 8)),
    (4, {"dp_shard": 0, "ep": 8}, "ep", (1, 2, 4)),
    (4, {"dp_replicate": 0, "dp_shard": 0, "ep": 8}, "ep", (1, 2, 4)),
]


@pytest.mark.parametrize(("world", "asked", "axis", "allowed"), REFUSED)
def test_axes_that_do_not_fit_are_refused_with_values_that_do(world, asked, axis, allowed):
    with pytest.raises(LayoutError) as refused:
        Layout.resolve(world, **asked)
    error = refused.value
    assert (error.where, error.value, error.allowed) == (f"parallel.{axis}", asked[axis], allowed)
    assert f"parallel.{axis}={asked[axis]}" in error.lines[0]


def test_axes_of_one_rank_are_not_listed():
    assert [row[:2] for row in Layout(dp_shard=8, ep=8).rows()] == [("dp_shard", 8), ("ep", 8)]
    assert [row[:2] for row in Layout(2, 2, 4, 2, 4).rows()] == [
        ("pp", 2), ("dp_replicate", 2), ("dp_shard", 4), ("cp", 2), ("ep", 4), ("expert_dp", 2),
    ]  # fmt: skip
    assert Layout().rows() == []


@pytest.mark.parametrize(("groups", "ep"), [(8, 1), (8, 2), (8, 8), (16, 8), (4, 8), (1, 8), (6, 3)])
def test_every_expert_slot_and_width_is_on_one_rank(groups, ep):
    placement, experts, slots, width = map_groups(groups, ep), 48, 48, 16
    assert placement.ep == ep
    cells = [
        (expert, column)
        for rank in range(ep)
        for expert in range(*placement.experts(rank, experts).indices(experts))
        for column in range(*placement.width(rank, width).indices(width))
    ]
    assert sorted(cells) == [(expert, column) for expert in range(experts) for column in range(width)]
    for rank in range(ep):
        # A rank's slots are those of the groups whose experts it holds.
        per_group = experts // groups
        held = {expert // per_group for expert in range(*placement.experts(rank, experts).indices(experts))}
        mine = placement.slots(rank, slots)
        assert {slot // (slots // groups) for slot in range(mine.start, mine.stop)} == held


def test_more_ranks_than_groups_split_the_width():
    assert map_groups(4, 8) == Placement(expert_shards=4, width_shards=2)


@pytest.mark.parametrize(
    ("groups", "ep", "allowed"),
    [(8, 3, "1, 2, 4 or a multiple of 8"), (8, 12, "1, 2, 4 or a multiple of 8"), (6, 4, "1, 2, 3 or a multiple of 6")],
)
def test_groups_that_do_not_match_the_ranks_are_refused(groups, ep, allowed):
    with pytest.raises(LayoutError) as refused:
        map_groups(groups, ep)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == ("parallel.ep", ep, allowed)
    assert allowed in refused.value.lines[0]


def test_divisors_of_large_numbers_take_no_time():
    for number in range(-1, 200):
        assert divisors(number) == tuple(n for n in range(1, number + 1) if number % n == 0)
    assert divisors(10**9 + 7) == (1, 10**9 + 7)
    assert len(divisors(10**12)) == 169
