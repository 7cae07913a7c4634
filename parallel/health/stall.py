"""Find the ranks that hold a run up from the status that each rank publishes. Touches no process and no clock."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

MOST_NAMED = 4  # ranks described in one message; the others are counted


@dataclass(frozen=True)
class RankStatus:
    """The state that a rank publishes with every heartbeat.

    node: the launcher that started it ("" if unknown); ranks of one node can see and signal each other's processes.
    beat: number of the heartbeat. place: the part of the program it has reached. idle: seconds since it last made
    progress. line: the source line of its main thread while it is idle. left: it ended normally. calls: collectives
    started, by group; the name of a background thread's group starts with `~`.
    """

    host: str
    pid: int
    node: str
    beat: int = 0
    place: str = ""
    line: str = ""
    idle: float = 0.0
    left: bool = False
    calls: dict[str, int] = field(default_factory=dict)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: bytes | str) -> RankStatus:
        return RankStatus(**json.loads(text))


def blocking_ranks(statuses: Mapping[int, RankStatus]) -> list[int]:
    """The ranks that others wait for and that wait for no other rank; empty if no rank is behind another.

    A collective waits for the slowest member of its group, so a rank that has started more of a group's collectives
    than another member waits for that member. Background groups count only if the others show no difference.
    """
    for background in (False, True):
        late: set[int] = set()
        waiting: set[int] = set()
        for group in {name for status in statuses.values() for name in status.calls}:
            started = {rank: status.calls[group] for rank, status in statuses.items() if group in status.calls}
            if group.startswith("~") == background:
                late |= {rank for rank, count in started.items() if count < max(started.values())}
                waiting |= {rank for rank, count in started.items() if count > min(started.values())}
        if late:
            return sorted(late - waiting or late)  # they may wait for each other in a circle
    return []


def describe(statuses: Mapping[int, RankStatus], blamed: Collection[int], problem: Mapping[int, str]) -> str:
    """One line that names the `blamed` ranks, each with its `problem` ("has made no progress for 9 s at") and place.

    A place is that of the rank's last heartbeat: by now the rank may be further."""
    named = []
    for rank in sorted(blamed)[:MOST_NAMED]:
        status = statuses[rank]
        place = status.place or "the start"
        line = f" ({status.line})" if status.line else ""
        named.append(f"rank {rank} (host {status.host}, pid {status.pid}) {problem[rank]} {place}{line}")
    if len(blamed) > MOST_NAMED:
        named.append(f"and {len(blamed) - MOST_NAMED} more ranks")
    return "; ".join(named)
