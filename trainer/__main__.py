"""`python -m trainer` and `torchrun -m trainer`: one rank of a run; trainer/start.py has its exit codes.

Imports little, so that Ctrl-C ends the process quietly from its first moment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parallel.interrupts import INTERRUPTED, exiting_on_interrupt, first_rank


def main(argv: Sequence[str] | None = None) -> int:
    try:
        with exiting_on_interrupt():
            from trainer import start
        return start.main(argv)
    except KeyboardInterrupt:
        if first_rank():
            print(INTERRUPTED, file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
