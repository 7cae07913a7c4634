"""Directories that take their name last: written beside their place as `NAME.xxxxxxxx.octavo.tmp`, under a name of one
process alone. A lock in there tells whether the writer lives. No torch here.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".octavo.tmp"
OWNER = "owner.lock"


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new directory beside `target`, locked as this process's own until the end, and removed where that is an
    exception."""
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{SUFFIX}")
    temporary.mkdir(parents=True)
    try:
        with open(temporary / f"{OWNER}.new", "wb") as lock:
            with contextlib.suppress(OSError):  # without locks others leave it alone, for they cannot take it either
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (temporary / f"{OWNER}.new").rename(temporary / OWNER)  # whoever finds it finds it locked
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_left_behind(target: Path) -> Path | None:
    """Remove what was to be `target` and has no living writer. Returns one that has one."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}" + re.escape(SUFFIX))
    found = target.parent.iterdir() if target.parent.is_dir() else ()
    for path in [path for path in found if pattern.fullmatch(path.name)]:
        try:
            with open(path / OWNER, "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
        except BlockingIOError:
            return path
        except OSError:  # without a lock, or another user's: it is not known to be nobody's
            continue
    return None
