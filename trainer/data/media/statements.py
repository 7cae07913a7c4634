"""The rules of images and signals in words: for the card of a corpus, and for that of an exported model."""

from __future__ import annotations

import dataclasses

from trainer.data.media.images import PatchRule
from trainer.data.media.rules import Rule
from trainer.data.media.signals import SignalRule

IMAGES = (
    "ordinary 8-bit images: as the published processor makes them of an opened image",
    "one channel of 16 or 32 bit or of floats: the 0.1 % and 99.9 % quantiles become black and white; NaN is black",
    "a TIFF whose white is 0 is inverted; a grey value that the file declares transparent is white",
    "several channels of 16 bit: the high byte of each",
    "the turn in EXIF is applied; what is transparent is laid on white",
    "of several frames, the first",
)
SIZES = (
    "sides of whole patches with an area in the range stay as they are, so a stored result is not resized again; of "
    "other images, those with a side over 200 times the other are refused"
)
SIGNALS = (
    "each channel is its z-score over the steps that are there; missing steps (NaN, gaps, fill values) become 0",
    "a constant channel and a signal of one step become 0; integers are converted to fp64 first",
    "nothing is resampled",
)
LONG = {
    "adapt": "long signals: patches widen, so that every step is in one of at most {max_tokens} tokens; nothing is "
    "added to the standard deviation",
    "cut": "long signals: the first 240,000 steps; 1e-8 is added to the standard deviation",
}


def options(rule: Rule) -> str:
    """The rule's name with its options."""
    found = ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(rule).items())
    return f"{type(rule).__name__} with {found}"


def statements(rule: Rule) -> list[str]:
    """A sentence for each kind of input that has a rule."""
    if isinstance(rule, SignalRule):
        return [*SIGNALS, LONG[rule.long].format(max_tokens=rule.max_tokens)]
    return [*IMAGES, SIZES] if isinstance(rule, PatchRule) else [*IMAGES]
