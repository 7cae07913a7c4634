"""Who is to blame, from records alone."""

from __future__ import annotations

from parallel.health.stall import Record, describe, stalling


def records(*calls: dict[str, int]) -> dict[int, Record]:
    return {rank: Record("host", 100 + rank, "0", place="step 3: data", calls=of) for rank, of in enumerate(calls)}


def test_a_rank_that_others_wait_for():
    assert stalling(records({"w": 5}, {"w": 5}, {"w": 4}, {"w": 5})) == [2]


def test_nobody_lags():
    assert stalling(records({"w": 5}, {"w": 5})) == []
    assert stalling(records({}, {})) == []


def test_a_rank_that_waits_itself_is_not_to_blame():
    """Rank 0 waits for rank 1 among all ranks; rank 1 waits for rank 2 within its own group."""
    ranks = records({"w": 9, "a": 2}, {"w": 8, "b": 4}, {"w": 8, "b": 3}, {"w": 9, "a": 2})
    assert stalling(ranks) == [2]


def test_several_that_are_stuck_apart():
    assert stalling(records({"a": 3}, {"a": 2}, {"b": 7}, {"b": 6})) == [1, 3]


def test_ranks_that_wait_for_each_other_are_all_named():
    assert stalling(records({"a": 2, "b": 1}, {"a": 1, "b": 2})) == [0, 1]


def test_background_groups_count_only_where_nothing_else_tells():
    assert stalling(records({"w": 5, "~": 3}, {"w": 4, "~": 4})) == [1]
    assert stalling(records({"w": 5, "~": 3}, {"w": 5, "~": 4})) == [0]


def test_a_record_survives_its_journey():
    record = Record("höst", 1, "0", beat=3, place="step 1: data", line="a.py:1 in f", idle=2.5, calls={"w": 1})
    assert Record.parse(record.dump().encode()) == record


def test_the_line_names_a_few_and_counts_the_rest():
    ranks = records(*({"w": 1} for _ in range(6)))
    line = describe(ranks, range(6), dict.fromkeys(ranks, "died"))
    assert line.startswith("rank 0 (host host, pid 100) died at step 3: data; rank 1 (")
    assert line.endswith("; and 2 more ranks")
    assert "\n" not in line
