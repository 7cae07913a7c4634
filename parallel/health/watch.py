"""A rank that dies or hangs takes the run down, and one line says which rank it was.

Every rank has a thread that writes a `Record` of it to the store of the rendezvous: a heartbeat, the place of the
program it has reached, and how many collectives it has begun. None of this waits for a device or takes part in a
collective. When no rank of the run has moved for `timeout_s`, or when a process is gone, the rank that finds out first
puts a notice into the store and prints it; every rank that reads the notice ends. Under torchrun the launcher holds the
store, so that it outlives rank 0.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from parallel.health.stall import Record, describe, stalling
from parallel.torch_private import collectives_started, process_groups

BEAT_S = 1.0
LOOKS = 20  # how often a rank that does not move looks at the others within timeout_s
# Seconds without a heartbeat after which, where a connection broke, a rank is taken for the one at its other end.
SILENT_S = 5.0
# Seconds to end in an orderly way after a notice. The blamed rank takes none, and a rank that was cut off takes these
# at least: the launcher reports the one that it sees end first.
LEAVE_S = 5.0
LINGER_S = 2.0
CLOSE_S = 30.0
# After this many times timeout_s without a heartbeat a thread of C ends the process: the interpreter may be what hangs.
GUARD = 1.25
BACKGROUND = "background"  # description of a process group that the main thread does not use
_SOURCES = Path(__file__).resolve().parents[2]


class PeerLost(RuntimeError):
    """Another rank is missing; some rank has said which on stderr."""


@dataclass(frozen=True)
class Notice:
    """Why the run ends. kill: blamed ranks whose own thread does not run, so that they cannot end by themselves."""

    by: int
    text: str
    blamed: list[int]
    kill: list[int]


class Watch:
    """Watches the ranks of one run from this one. Alone it only remembers the place."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        timeout_s: float = 600.0,
        store: dist.Store | None = None,
        join_s: float = 600.0,
    ) -> None:
        """store: a connection that nothing else uses, because a wait on a connection blocks all its users. join_s: how
        long `join` waits."""
        self.rank, self.size, self.timeout_s, self._join_s = rank, size, timeout_s, join_s
        self._store = store
        self._beat_s = min(BEAT_S, timeout_s / 30)
        self._look_s = max(3 * self._beat_s, timeout_s / LOOKS)
        self._place, self._moves = "", 0
        self._calls: dict[str, int] = {}
        self._counted_moves = 0
        self._moved = self._looked = time.monotonic()
        self._record = Record(socket.gethostname(), os.getpid(), os.environ.get("GROUP_RANK", ""))
        self._seen: dict[int, tuple[Record, float]] = {}  # newest record of each rank, and when its heart beat here
        self._siblings: dict[int, int] = {}  # pids of the other ranks under the same launcher
        self._cut_off: float | None = None  # when a connection of this rank broke
        self._cause_known: bool | None = None  # whether somebody has said why; None: not found out yet
        self._found_out = threading.Event()
        self._store_lost: float | None = None
        self._leave_by: float | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- for the main thread

    def at(self, place: str) -> None:
        """This rank has got to `place` ("step 12: data"). Costs next to nothing. At "" nobody is expected to move."""
        self._place = place
        self._moves += 1

    def tick(self) -> None:
        """This rank has got on without leaving its place."""
        self._moves += 1

    def join(self) -> None:
        """Wait for all ranks, then start to watch them. Raises `PeerLost` where some do not come within `join_s`."""
        store = self._store
        if store is None:
            return
        store.set(_key(self.rank), self._record.dump())
        if store.add("joined", 1) == self.size:
            store.set("complete", "")
        deadline, pause = time.monotonic() + self._join_s, 0.01
        while not store.check(["complete"]):
            if time.monotonic() > deadline:
                missing = [rank for rank in range(self.size) if not store.check([_key(rank)])]
                names = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
                text = f"{self.size - len(missing)} of {self.size} ranks joined within {self._join_s:g} s; missing: "
                text += f"rank {names}. See what they and their launchers printed, or let parallel.timeout_s be longer"
                self._put_up(Notice(self.rank, text, [], []), say=True)
                raise PeerLost(text)
            time.sleep(pause)
            pause = min(2 * pause, 0.5, self._beat_s)  # often at first, rarely where thousands wait for one
        for rank, dumped in enumerate(store.multi_get([_key(rank) for rank in range(self.size)])):
            record = Record.parse(dumped)
            if rank != self.rank and record.node and record.node == self._record.node:
                self._siblings[rank] = record.pid
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def first_to_fail(self, error: BaseException) -> bool:
        """Tell the other ranks that this one ends with `error`. True where this rank is to say so itself.

        False where another rank failed before it, or where `error` came of another rank's end and that one has been
        named when this returns.
        """
        if isinstance(error, PeerLost):
            return False
        if self._thread is None:
            return True
        if _tells_of_a_peer(error):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it before this rank knows more
            self._cut_off = time.monotonic()
            self._found_out.wait(2 * SILENT_S + LEAVE_S)
        else:
            self._leave_by = time.monotonic() + LEAVE_S
            text = f"rank {self.rank} failed: {error}"
            try:
                self._cause_known = not self._put_up(Notice(self.rank, text, [self.rank], []), say=False)
            except RuntimeError:  # the store is gone
                self._cause_known = False
        if not self._cause_known:
            return True
        time.sleep(LINGER_S)
        return False

    @property
    def run_ends(self) -> bool:
        """Whether this rank or another has failed."""
        return self._leave_by is not None

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_S)  # else the others take this rank for dead
            self._thread = None

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._closed.wait(self._beat_s):
                if self._place:
                    faulthandler.dump_traceback_later(GUARD * self.timeout_s, exit=True, file=2)
                else:
                    faulthandler.cancel_dump_traceback_later()
                if self._store_lost is not None:
                    self._go_on_alone(time.monotonic() - self._store_lost)
                else:
                    try:
                        self._beat()
                    except RuntimeError:  # of which all errors of a store are kinds
                        self._store_lost = time.monotonic()
                if self._leave_by is not None and time.monotonic() > self._leave_by:
                    _end()
            if self._store_lost is None:
                with contextlib.suppress(RuntimeError):
                    self._publish(left=True)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _beat(self) -> None:
        assert self._store is not None
        moves, calls = self._moves, _collectives_begun()
        if (moves, calls) != (self._counted_moves, self._calls):
            self._counted_moves, self._calls, self._moved = moves, calls, time.monotonic()
        self._publish()
        if self._store.check(["notice"]):
            self._obey(Notice(**json.loads(self._store.get("notice"))))
        elif self._place:
            self._look_for_the_dead()
            now = time.monotonic()
            if self._cut_off is not None or min(now - self._moved, now - self._looked) > self._look_s:
                self._look_for_the_stuck(now)

    def _publish(self, *, left: bool = False) -> None:
        assert self._store is not None
        idle = time.monotonic() - self._moved
        self._record = replace(
            self._record,
            beat=self._record.beat + 1,
            place=self._place,
            line=_line_of_the_main_thread() if idle > self._look_s else "",
            idle=idle,
            left=left,
            calls=self._calls,
        )
        self._store.set(_key(self.rank), self._record.dump())

    def _look_for_the_dead(self) -> None:
        """Find processes of this machine that ended without a word."""
        assert self._store is not None
        for rank, pid in list(self._siblings.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                del self._siblings[rank]
                record = Record.parse(self._store.get(_key(rank)))
                if not record.left:
                    self._blame({rank: record}, [rank], {rank: "died; last heard of"})

    def _look_for_the_stuck(self, now: float) -> None:
        """Read all records. No rank that moved within the timeout, or none that answers: raise the alarm."""
        assert self._store is not None
        self._looked = now
        for rank, text in enumerate(self._store.multi_get([_key(rank) for rank in range(self.size)])):
            record = Record.parse(text)
            if rank not in self._seen or self._seen[rank][0].beat != record.beat:
                self._seen[rank] = (record, now)
        records = {rank: record for rank, (record, _) in self._seen.items() if not record.left}
        silence = {rank: now - self._seen[rank][1] for rank in records}
        idle = {rank: record.idle + silence[rank] for rank, record in records.items()}
        how = {rank: f"has not moved for {seconds:.0f} s" for rank, seconds in idle.items()}
        # These ranks' records are older than the others', and so are the places in them.
        patience = SILENT_S if self._cut_off is not None else self.timeout_s / 2
        silent = [rank for rank in records if silence[rank] > patience]
        how |= {rank: f"has given no sign of life for {silence[rank]:.0f} s; last heard of" for rank in silent}
        if min(idle.values()) >= self.timeout_s:
            setting = f" (parallel.timeout_s={self.timeout_s:g})"
            self._blame(records, silent or stalling(records), how, kill=silent, setting=setting)
        elif self._cut_off is not None and silent:
            self._blame(records, silent, how, kill=silent)
        elif self._cut_off is not None and now - self._cut_off > 2 * SILENT_S:
            notice = Notice(self.rank, f"rank {self.rank} lost a connection, but all ranks live", [self.rank], [])
            self._leave(cause_known=not self._put_up(notice, say=False))

    def _blame(
        self,
        records: dict[int, Record],
        ranks: list[int],
        how: dict[int, str],
        *,
        kill: Sequence[int] = (),
        setting: str = "",
    ) -> None:
        if ranks:
            text = f"{describe(records, ranks, how)}; the run ends with it{setting}"
        else:
            text = f"no rank moves and none lags behind another{setting}: {describe(records, list(records), how)}"
        self._put_up(Notice(self.rank, text, ranks, list(kill)), say=True)

    def _put_up(self, notice: Notice, *, say: bool) -> bool:
        """Put up the notice that ends the run. False where there is one already."""
        assert self._store is not None
        mine = json.dumps(asdict(notice))
        first = self._store.compare_set("notice", "", mine) == mine.encode()
        if first and say:
            _say(notice.text)
        return first

    def _obey(self, notice: Notice) -> None:
        if self._leave_by is not None:
            return
        for rank in notice.kill:
            if rank in self._siblings:  # it cannot end by itself, and its launcher would wait for it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._siblings[rank], signal.SIGKILL)
        if self.rank in notice.blamed:
            _end()
        self._leave(cause_known=True)

    def _leave(self, *, cause_known: bool) -> None:
        self._leave_by = time.monotonic() + LEAVE_S
        self._cause_known = cause_known
        self._found_out.set()

    def _go_on_alone(self, lost_s: float) -> None:
        """Nobody can be asked any more: end with the first connection that breaks, or after the timeout."""
        if self._place and self._leave_by is None and (self._cut_off is not None or lost_s > self.timeout_s):
            if os.environ.get("LOCAL_RANK", "0") == "0":
                _say(f"rank {self.rank} lost the store of the rendezvous: the launcher that held it has ended")
            self._leave(cause_known=True)


def _key(rank: int) -> str:
    return f"rank-{rank}"


def _collectives_begun() -> dict[str, int]:
    """How many collectives this process has begun in each of its groups; the host's count, whatever its device does."""
    return {
        f"{'~' if group.group_desc == BACKGROUND else ''}{group.group_name}": collectives_started(group)
        for group in process_groups()
    }


def _line_of_the_main_thread() -> str:
    """The innermost line of our own code that the main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_SOURCES) and path.relative_to(_SOURCES).parts[0] in ("parallel", "trainer"):
            return f"{path.relative_to(_SOURCES)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def _tells_of_a_peer(error: BaseException | None) -> bool:
    """Whether `error` came of a collective or the store. gloo has no class of its own, but names its source file."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"error: {text}\n".encode())  # print may wait for what the main thread holds


def _end() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)
