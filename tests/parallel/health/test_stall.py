"""Ranks that hold a run up, found from their status alone."""

from __future__ import annotations

from parallel.health.stall import RankStatus, blocking_ranks, describe


def statuses(*calls: dict[str, int]) -> dict[int, RankStatus]:
    return {rank: RankStatus("host", 100 + rank, "0", place="step 3: data", calls=of) for rank, of in enumerate(calls)}


def test_a_rank_that_others_wait_for():
    assert blocking_ranks(statuses({"w": 5}, {"w": 5}, {"w": 4}, {"w": 5})) == [2]


def test_no_rank_is_behind():
    assert blocking_ranks(statuses({"w": 5}, {"w": 5})) == []
    assert blocking_ranks(statuses({}, {})) == []


def test_a_waiting_rank_does_not_block():
    """Rank 0 waits for rank 1 among all ranks; rank 1 waits for rank 2 within its own group."""
    ranks = statuses({"w": 9, "a": 2}, {"w": 8, "b": 4}, {"w": 8, "b": 3}, {"w": 9, "a": 2})
    assert blocking_ranks(ranks) == [2]


def test_several_that_are_stuck_apart():
    assert blocking_ranks(statuses({"a": 3}, {"a": 2}, {"b": 7}, {"b": 6})) == [1, 3]


def test_ranks_that_wait_for_each_other_are_all_named():
    assert blocking_ranks(statuses({"a": 2, "b": 1}, {"a": 1, "b": 2})) == [0, 1]


def test_background_groups_count_only_if_the_others_are_level():
    assert blocking_ranks(statuses({"w": 5, "~": 3}, {"w": 4, "~": 4})) == [1]
    assert blocking_ranks(statuses({"w": 5, "~": 3}, {"w": 5, "~": 4})) == [0]


def test_a_status_is_parsed_as_it_was_dumped():
    status = RankStatus("höst", 1, "0", beat=3, place="step 1: data", line="a.py:1 in f", idle=2.5, calls={"w": 1})
    assert RankStatus.parse(status.dump().encode()) == status


def test_the_line_names_a_few_and_counts_the_rest():
    ranks = statuses(*({"w": 1} for _ in range(6)))
    line = describe(ranks, range(6), dict.fromkeys(ranks, "died at"))
    assert line.startswith("rank 0 (host host, pid 100) died at step 3: data; rank 1 (")
    assert line.endswith("; and 2 more ranks")
    assert "\n" not in line
