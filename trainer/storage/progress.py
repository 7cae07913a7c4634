"""The progress of long work, counted for a display."""

from __future__ import annotations


class Progress:
    """Counts one stage of work after another, and shows nothing: a display derives from it and overrides `show`.

    stage: name. done, total: in `unit`. kept: how much of `done` an earlier start did. made: what this start did, in
    `speed_unit`, for a speed; the same as `done` less `kept` where that is "".
    """

    stage = ""
    unit = "bytes"
    speed_unit = ""
    done = total = kept = made = 0

    def start(self, stage: str, total: int, *, unit: str = "bytes", speed_unit: str = "", kept: int = 0) -> None:
        """Start a stage."""
        self.stage, self.total, self.unit, self.speed_unit = stage, total, unit, speed_unit
        self.done = self.kept = kept
        self.made = 0

    def keep(self, amount: int) -> None:
        """Count what an earlier start did."""
        self.done += amount
        self.kept += amount
        self.show()

    def advance(self, amount: int, made: int | None = None) -> None:
        """Count what this start did."""
        self.done += amount
        self.made += amount if made is None else made
        self.show()

    def show(self) -> None:
        """Called after each change within a stage."""
