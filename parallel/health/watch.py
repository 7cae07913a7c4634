"""End the run when a rank dies or hangs, with one line that names the rank.

Every rank has a thread that writes a `RankStatus` to the rendezvous store: a heartbeat, the place in the program that
the rank has reached, and how many collectives it has started. None of this waits for a device or takes part in a
collective. When no rank of the run has made progress for `timeout_s`, or a process is gone, the rank that notices first
puts a notice into the store and prints it; every rank that reads the notice ends. Under torchrun the launcher holds the
store, so it outlives rank 0.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from parallel.health.stall import RankStatus, blocking_ranks, describe
from parallel.health.terminal import leave_terminal, write_line
from parallel.torch_private import collectives_started, process_groups

BEAT_S = 1.0
LOOKS = 20  # how often an idle rank checks the others within timeout_s
# After a connection broke, a rank whose heartbeat is older than this is taken for the one at the other end.
SILENT_S = 5.0
# Time to end in good order after a notice. The blamed rank takes none, and a rank whose connection broke at least
# LINGER_S: the launcher reports the rank that ends first.
LEAVE_S = 5.0
LINGER_S = 2.0
CLOSE_S = 30.0
# After this many times timeout_s without a heartbeat a C thread ends the process: the interpreter itself may hang.
GUARD = 1.25
BACKGROUND = "background"  # description of a process group that the main thread does not use
_SOURCES = Path(__file__).resolve().parents[2]


class PeerLost(RuntimeError):
    """Another rank is missing, and a rank has already printed which. Not a UserError: its text is not printed again."""


@dataclass(frozen=True)
class Notice:
    """The reason that the run ends. blamed: ranks that caused it. kill: those of them that cannot end by themselves,
    because their threads do not run."""

    by: int
    text: str
    blamed: list[int]
    kill: list[int]


class Watch:
    """Watches all ranks of a run from this one. In a run of one process it only keeps the place."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        timeout_s: float = 600.0,
        store: dist.Store | None = None,
        join_s: float = 600.0,
    ) -> None:
        """store: a connection used by this object only, because a wait on a connection blocks all its users. join_s:
        how long `join` waits."""
        self.rank, self.size, self.timeout_s, self._join_s = rank, size, timeout_s, join_s
        self._store = store
        self._beat_s = min(BEAT_S, timeout_s / 30)
        self._look_s = max(3 * self._beat_s, timeout_s / LOOKS)
        self._place, self._moves = "", 0
        self._calls: dict[str, int] = {}
        self._counted_moves = 0
        self._last_move = self._last_look = time.monotonic()
        self._status = RankStatus(socket.gethostname(), os.getpid(), os.environ.get("GROUP_RANK", ""))
        self._seen: dict[int, tuple[RankStatus, float]] = {}  # latest status of each rank, and when it arrived here
        self._siblings: dict[int, int] = {}  # pids of the other ranks under the same launcher
        self._cut_off: float | None = None  # when a connection of this rank broke
        self._cause_printed: bool | None = None  # whether some rank has printed the cause; None: not known yet
        self._cause_found = threading.Event()
        self._store_lost: float | None = None
        self._leave_by: float | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- for the main thread

    def at(self, place: str) -> None:
        """Note that this rank has reached `place` ("step 12: data"). At "" no progress is expected. Nearly free."""
        self._place = place
        self._moves += 1

    def tick(self) -> None:
        """Note progress at the same place."""
        self._moves += 1

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Note progress while this rank waits for something that has deadlines of its own, such as a server."""
        done = threading.Event()

        def tick() -> None:
            while not done.wait(BEAT_S):
                self.tick()

        thread = threading.Thread(target=tick, name="ticking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def join(self) -> None:
        """Wait for all ranks, then start to watch them. Raises `PeerLost` if some do not join within `join_s`."""
        store = self._store
        if store is None:
            return
        store.set(_key(self.rank), self._status.dump())
        if store.add("joined", 1) == self.size:
            store.set("complete", "")
        deadline, pause = time.monotonic() + self._join_s, 0.01
        while not store.check(["complete"]):
            if time.monotonic() > deadline:
                missing = [rank for rank in range(self.size) if not store.check([_key(rank)])]
                names = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
                text = f"{self.size - len(missing)} of {self.size} ranks joined within {self._join_s:g} s; missing: "
                text += f"rank {names}. See their output and their launchers', or increase parallel.timeout_s"
                self._post(Notice(self.rank, text, [], []), print_it=True)
                raise PeerLost(text)
            time.sleep(pause)
            pause = min(2 * pause, 0.5, self._beat_s)  # often at first, rarely when thousands wait for one
        for rank, dumped in enumerate(store.multi_get([_key(rank) for rank in range(self.size)])):
            status = RankStatus.parse(dumped)
            if rank != self.rank and status.node and status.node == self._status.node:
                self._siblings[rank] = status.pid
        self._last_move = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def report_failure(self, error: BaseException) -> bool:
        """Let the other ranks know that this one ends with `error`. Returns True if this rank should print the error.

        False if another rank failed first, or if `error` resulted from another rank's end; that rank has been named by
        the time this returns.
        """
        if isinstance(error, PeerLost):
            return False
        if self._thread is None:
            return True
        if _caused_by_a_peer(error):
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it before this rank knows more
            self._cut_off = time.monotonic()
            self._cause_found.wait(2 * SILENT_S + LEAVE_S)
        else:
            self._leave_by = time.monotonic() + LEAVE_S
            text = f"rank {self.rank} failed: {error}"
            try:
                self._cause_printed = not self._post(Notice(self.rank, text, [self.rank], []), print_it=False)
            except RuntimeError:  # the store is gone
                self._cause_printed = False
        if not self._cause_printed:
            return True
        time.sleep(LINGER_S)
        return False

    @property
    def failed(self) -> bool:
        """True once this rank or another has failed."""
        return self._leave_by is not None

    def close(self) -> None:
        """Stop watching. May be called twice."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_S)  # without the last status the others take this rank for dead
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
                    self._watch_without_store(time.monotonic() - self._store_lost)
                else:
                    try:
                        self._beat()
                    except RuntimeError:  # the base of all errors of a store
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
        moves, calls = self._moves, _calls_by_group()
        if (moves, calls) != (self._counted_moves, self._calls):
            self._counted_moves, self._calls, self._last_move = moves, calls, time.monotonic()
        self._publish()
        if self._store.check(["notice"]):
            self._follow(Notice(**json.loads(self._store.get("notice"))))
        elif self._place:
            self._look_for_dead_ranks()
            now = time.monotonic()
            if self._cut_off is not None or min(now - self._last_move, now - self._last_look) > self._look_s:
                self._look_for_idle_ranks(now)

    def _publish(self, *, left: bool = False) -> None:
        assert self._store is not None
        idle = time.monotonic() - self._last_move
        self._status = replace(
            self._status,
            beat=self._status.beat + 1,
            place=self._place,
            line=_line_of_the_main_thread() if idle > self._look_s else "",
            idle=idle,
            left=left,
            calls=self._calls,
        )
        self._store.set(_key(self.rank), self._status.dump())

    def _look_for_dead_ranks(self) -> None:
        """Find processes of this machine that ended without a last status."""
        assert self._store is not None
        for rank, pid in list(self._siblings.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                del self._siblings[rank]
                status = RankStatus.parse(self._store.get(_key(rank)))
                if not status.left:
                    self._blame({rank: status}, [rank], {rank: "died; its last heartbeat (one a second) came from"})

    def _look_for_idle_ranks(self, now: float) -> None:
        """Read every rank's status; end the run if no rank made progress within the timeout, or if one is silent."""
        assert self._store is not None
        self._last_look = now
        for rank, text in enumerate(self._store.multi_get([_key(rank) for rank in range(self.size)])):
            status = RankStatus.parse(text)
            if rank not in self._seen or self._seen[rank][0].beat != status.beat:
                self._seen[rank] = (status, now)
        statuses = {rank: status for rank, (status, _) in self._seen.items() if not status.left}
        silence = {rank: now - self._seen[rank][1] for rank in statuses}
        idle = {rank: status.idle + silence[rank] for rank, status in statuses.items()}
        problem = {rank: f"has made no progress for {seconds:.0f} s at" for rank, seconds in idle.items()}
        # The status of these ranks, and so the place in it, is older than the others'.
        patience = SILENT_S if self._cut_off is not None else self.timeout_s / 2
        silent = [rank for rank in statuses if silence[rank] > patience]
        problem |= {rank: f"has sent no heartbeat for {silence[rank]:.0f} s; the last one came from" for rank in silent}
        if min(idle.values()) >= self.timeout_s:
            setting = f" (parallel.timeout_s={self.timeout_s:g})"
            self._blame(statuses, silent or blocking_ranks(statuses), problem, kill=silent, setting=setting)
        elif self._cut_off is not None and silent:
            self._blame(statuses, silent, problem, kill=silent)
        elif self._cut_off is not None and now - self._cut_off > 2 * SILENT_S:
            notice = Notice(self.rank, f"rank {self.rank} lost a connection, but all ranks are alive", [self.rank], [])
            self._leave(cause_printed=not self._post(notice, print_it=False))

    def _blame(
        self,
        statuses: dict[int, RankStatus],
        ranks: list[int],
        problem: dict[int, str],
        *,
        kill: Sequence[int] = (),
        setting: str = "",
    ) -> None:
        if ranks:
            text = f"{describe(statuses, ranks, problem)}; the run ends{setting}"
        else:
            text = f"no rank is making progress and none is behind the others{setting}: "
            text += describe(statuses, list(statuses), problem)
        self._post(Notice(self.rank, text, ranks, list(kill)), print_it=True)

    def _post(self, notice: Notice, *, print_it: bool) -> bool:
        """Post the notice that ends the run. Returns False if another one has been posted."""
        assert self._store is not None
        mine = json.dumps(asdict(notice))
        first = self._store.compare_set("notice", "", mine) == mine.encode()
        if first and print_it:
            write_line(f"error: {notice.text}")
        return first

    def _follow(self, notice: Notice) -> None:
        if self._leave_by is not None:
            return
        for rank in notice.kill:
            if rank in self._siblings:  # it cannot end by itself, and its launcher would wait for it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._siblings[rank], signal.SIGKILL)
        if self.rank in notice.blamed:
            _end()
        self._leave(cause_printed=True)

    def _leave(self, *, cause_printed: bool) -> None:
        self._leave_by = time.monotonic() + LEAVE_S
        self._cause_printed = cause_printed
        self._cause_found.set()

    def _watch_without_store(self, lost_s: float) -> None:
        """End with the first connection that breaks, or after the timeout: the other ranks cannot be reached."""
        if self._place and self._leave_by is None and (self._cut_off is not None or lost_s > self.timeout_s):
            if os.environ.get("LOCAL_RANK", "0") == "0":
                write_line(f"error: rank {self.rank} lost the rendezvous store: the launcher that hosted it has exited")
            self._leave(cause_printed=True)


def _key(rank: int) -> str:
    return f"rank-{rank}"


def _calls_by_group() -> dict[str, int]:
    """Collectives that this process has started in each of its groups, as the host counts them."""
    return {
        f"{'~' if group.group_desc == BACKGROUND else ''}{group.group_name}": collectives_started(group)
        for group in process_groups()
    }


def _line_of_the_main_thread() -> str:
    """The innermost line of our own code that the main thread executes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_SOURCES) and path.relative_to(_SOURCES).parts[0] in ("parallel", "trainer"):
            return f"{path.relative_to(_SOURCES)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def _caused_by_a_peer(error: BaseException | None) -> bool:
    """True if `error` came from a collective or the store. gloo has no error class, but names its source file."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    leave_terminal()
    os._exit(1)
