"""Lines on stderr from places where print could block: signal handlers, and threads that end the process."""

from __future__ import annotations

import contextlib
import os

ERASE_LINE = "\r\033[2K"
SHOW_CURSOR = "\033[?25h"


def write_line(text: str) -> None:
    """Write a line to stderr, in place of the progress bar that this process may have at the cursor."""
    erase = ERASE_LINE if os.isatty(1) and os.isatty(2) else ""
    with contextlib.suppress(OSError):  # the terminal may be what went away
        os.write(2, f"{erase}{text}\n".encode())


def leave_terminal() -> None:
    """Erase this process's progress bar and show the cursor, before an exit that runs no clean-up."""
    if os.isatty(1):
        with contextlib.suppress(OSError):
            os.write(1, f"{ERASE_LINE}{SHOW_CURSOR}".encode())
