"""The environment that torchrun gives a process. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from parallel.errors import Fault, UserError

MOST_RANKS = 2**31 - 1
LAST_PORT = 65535
OF_A_RUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Environment:
    """A process among those of a run; the defaults are a process alone."""

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    address: str = ""
    port: int = 0


def ranks_of_machine(environ: Mapping[str, str] = os.environ) -> int:
    """The number of a run's ranks on this machine (LOCAL_WORLD_SIZE); 1 without a launcher."""
    return int(environ.get("LOCAL_WORLD_SIZE", "1"))


def read_environment(environ: Mapping[str, str] = os.environ) -> Environment:
    """Read WORLD_SIZE, RANK and LOCAL_RANK, and where there are several ranks MASTER_ADDR and MASTER_PORT.

    Raises `UserError` with every variable that is not what torchrun sets.
    """
    faults: list[Fault] = []

    def number(name: str, least: int, most: int, alone: int) -> int:
        text = environ.get(name, str(alone))
        if text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        allowed = f"{least}" if least == most else f"a whole number from {least} to {most}"
        remedy = f"{allowed}, as torchrun sets it, or unset {name}"
        faults.append(Fault(f"{name}={text[:100]}: use {remedy}", name, text, remedy))
        return alone

    size = number("WORLD_SIZE", 1, MOST_RANKS, 1)
    sound = not faults
    rank = number("RANK", 0, (size if sound else MOST_RANKS) - 1, 0)
    local_rank = number("LOCAL_RANK", 0, MOST_RANKS, 0)
    missing = [
        name for name in OF_A_RUN if not environ.get(name, "").strip() and (name != "RANK" or name not in environ)
    ]
    if size == 1:
        address, port = "", 0
    elif missing:
        text = f"WORLD_SIZE={size} is set without {', '.join(missing)}; start the run with torchrun or unset WORLD_SIZE"
        faults.append(Fault(text, "WORLD_SIZE", size, f"with {', '.join(missing)}, as torchrun sets them"))
        address, port = "", 0
    else:
        address, port = environ["MASTER_ADDR"], number("MASTER_PORT", 1, LAST_PORT, 1)
    if faults:
        raise UserError(faults)
    return Environment(size, rank, local_rank, address, port)
