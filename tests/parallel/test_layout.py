"""Sizes of the axes, and router groups onto ranks: what is filled in, and what is refused with the values that work."""

from __future__ import annotations

import pytest

from parallel.groups import Placement, map_groups
from parallel.layout import Layout, LayoutError

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
    (8, {"dp_replicate": 3, "dp_shard": 0}, "parallel.dp_replicate=3 .* use 1, 2, 4 or 8"),
    (8, {"dp_replicate": 2, "dp_shard": 2}, "is 4 rank.* has 8"),
    (8, {"dp_shard": 0, "ep": 3}, "parallel.ep=3 .* use parallel.ep=1, 2, 4 or 8"),
    (4, {"dp_shard": 0, "ep": 8}, "parallel.ep=8 .* use parallel.ep=1, 2 or 4"),
    (4, {"dp_replicate": 0, "dp_shard": 0, "ep": 8}, "parallel.ep=8 .* start a multiple of 8 ranks"),
]


@pytest.mark.parametrize(("world", "asked", "says"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(world, asked, says):
    with pytest.raises(LayoutError, match=says):
        Layout.resolve(world, **asked)


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


@pytest.mark.parametrize(("groups", "ep", "says"), [(8, 3, "use 1, 2, 4 or a multiple of 8"), (8, 12, "multiple of 8")])
def test_groups_that_match_no_ranks_are_refused(groups, ep, says):
    with pytest.raises(ValueError, match=says):
        map_groups(groups, ep)
