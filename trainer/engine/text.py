"""Text from tokens as they come. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
INCOMPLETE = "\ufffd"  # a decoder's answer to bytes that are not yet a character


class TextStream:
    """The text of an answer. Text that may turn out to be a part of a stop text is held back until that is known, and
    so are bytes of a character that is not complete.

    text: all of it so far, without the stop text. stopped: True once a stop text was found.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, stop
        self._ids: list[int] = []
        self._from = self._read = 0  # decoded together; before `_read` the text is known
        self._held = ""
        self.text, self.stopped = "", False

    def push(self, token: int) -> str:
        """Returns the text that can be shown now."""
        self._ids.append(token)
        known = self._decode(self._ids[self._from : self._read])
        both = self._decode(self._ids[self._from :])
        if both.endswith(INCOMPLETE) or len(both) <= len(known):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._show(both[len(known) :])

    def finish(self) -> str:
        """The answer ends: returns what was held back."""
        if self.stopped:
            return ""
        known = self._decode(self._ids[self._from : self._read])
        shown = self._show(self._decode(self._ids[self._from :])[len(known) :])
        self._from = self._read = len(self._ids)
        rest, self._held = "" if self.stopped else self._held, ""
        self.text += rest
        return shown + rest

    def _show(self, more: str) -> str:
        self._held += more
        starts = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if starts:
            self.stopped = True
            shown, self._held = self._held[: min(starts)], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` starts with."""
    return next((size for size in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:size])), 0)
