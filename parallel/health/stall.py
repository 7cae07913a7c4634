"""Who keeps a run from going on, from what its ranks tell of themselves. No process or clock is touched here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

NAMED = 4  # ranks described in one message; the others are counted


@dataclass(frozen=True)
class Record:
    """What a rank tells of itself with every beat of its heart.

    node: the launcher that started it ("" where unknown); ranks of one node can see and signal each other's processes.
    place: the part of the program it has reached. idle: seconds since it last got anywhere. line: the source line where
    its main thread then stands. left: it ended as it should. calls: collectives begun, by group; a name that starts
    with `~` is a group of a background thread.
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
    def parse(text: bytes | str) -> Record:
        return Record(**json.loads(text))


def stalling(records: Mapping[int, Record]) -> list[int]:
    """The ranks that others wait for and that wait for nobody themselves; none where no rank lags behind another.

    A collective waits for the slowest member of its group, so whoever has begun more of a group's collectives than
    another member waits for that one. Background groups count only where the main threads tell nothing.
    """
    for background in (False, True):
        late: set[int] = set()
        waiting: set[int] = set()
        for group in {name for record in records.values() for name in record.calls}:
            begun = {rank: record.calls[group] for rank, record in records.items() if group in record.calls}
            if group.startswith("~") == background:
                late |= {rank for rank, count in begun.items() if count < max(begun.values())}
                waiting |= {rank for rank, count in begun.items() if count > min(begun.values())}
        if late:
            return sorted(late - waiting or late)  # they may wait for each other in a circle
    return []


def describe(records: Mapping[int, Record], blamed: Collection[int], how: Mapping[int, str]) -> str:
    """One line that names the `blamed` ranks; `how` says what is wrong with each."""
    named = []
    for rank in sorted(blamed)[:NAMED]:
        record = records[rank]
        place = record.place or "the start"
        line = f" ({record.line})" if record.line else ""
        named.append(f"rank {rank} (host {record.host}, pid {record.pid}) {how[rank]} at {place}{line}")
    if len(blamed) > NAMED:
        named.append(f"and {len(blamed) - NAMED} more ranks")
    return "; ".join(named)
