"""A file written from front to back whose SHA-256 is taken on the way, from the buffer that is written.

Hashing a file of gigabytes afterwards reads it all again. And pages that go through the page cache cost more CPU than
anything else here but the hash (0.25 to 1.2 ns a byte against 0.07 on a virtual machine), push the source out of memory
and pile up for the last sync. So blocks go past it (O_DIRECT), where the file system can, and a thread waits for them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import threading
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

BLOCK, BLOCKS = 4 << 20, 3  # bytes of one write, and how many there are
STEP = 256 << 10  # copied, then hashed while still in the core's own cache
DIRECT = getattr(os, "O_DIRECT", 0)


def _block() -> mmap.mmap:
    """Memory that starts at a page, as O_DIRECT needs, in huge pages where there are any: the kernel looks up and holds
    every page of a write, which is most of what small ones cost."""
    block = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


class HashedFile:
    """A context; `write` in order, then `finish`. Raises OSError from any of these, once a block could not be written.

    Memory: BLOCKS * BLOCK bytes.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._file = os.open(path, flags | DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, flags, 0o666)  # a file system in memory, say
        self._hash = hashlib.sha256()
        self._error: OSError | None = None
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._full: SimpleQueue[tuple[mmap.mmap, int] | None] = SimpleQueue()
        for _ in range(BLOCKS):
            self._free.put(_block())
        self._block, self._used, self.size = self._free.get(), 0, 0
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        os.close(self._file)

    def write(self, data: bytes | memoryview) -> None:
        done, view = 0, memoryview(data)
        while done < len(view):
            if self._used == BLOCK:
                self._full.put((self._block, BLOCK))
                self._block, self._used = self._free.get(), 0
                if self._error is not None:
                    raise self._error
            count = min(STEP, BLOCK - self._used, len(view) - done)
            with memoryview(self._block) as block, block[self._used : self._used + count] as part:
                part[:] = view[done : done + count]
                self._hash.update(part)
            self._used += count
            done += count
        self.size += len(view)

    def finish(self) -> dict[str, Any]:
        """Everything on disk; what `manifest.file_facts` would say of the file."""
        self._full.put((self._block, self._used))
        self._stop()
        if self._error is not None:
            raise self._error
        os.fsync(self._file)
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def _stop(self) -> None:
        self._full.put(None)
        self._thread.join()

    def _drain(self) -> None:
        start = 0
        while (entry := self._full.get()) is not None:
            block, count = entry
            if self._error is None:
                try:
                    with memoryview(block) as view:
                        self._write(view[:count], start)
                except OSError as error:
                    self._error = error
            start += count
            self._free.put(block)

    def _write(self, data: memoryview, start: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._file, data[done:], start + done)
            except OSError as error:  # the end of the file, no whole page; or what a write that was cut short left
                if error.errno != errno.EINVAL or not self._through_the_cache():
                    raise

    def _through_the_cache(self) -> bool:
        """Return True if this call changed the mode."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~DIRECT)
        return bool(flags & DIRECT)
