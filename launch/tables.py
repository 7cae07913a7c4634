"""Tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(first: str, *others: str) -> Table:
    """A table without lines: a column that is aligned to the left, and others to the right."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE, pad_edge=False)
    found.add_column(first)
    for column in others:
        found.add_column(column, justify="right")
    return found


def print_table(table: Table) -> None:
    from rich.console import Console

    console = Console()
    Console(width=max(console.width, 120)).print(table)
