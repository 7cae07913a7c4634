"""The card of a corpus with images or signals: what it holds, and how they become the towers' inputs, for a reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from trainer.data.media.rules import ImageKind, MediaRules, SignalKind

CARD = "card.md"
IMAGES = (
    "ordinary 8-bit images: as the published processor makes them of an opened image",
    "one channel of 16 or 32 bit or of floats: the 0.1 % and 99.9 % quantiles become black and white; NaN is black",
    "a TIFF whose white is 0 is inverted; a grey value that the file declares transparent is white",
    "several channels of 16 bit: the high byte of each",
    "the turn in EXIF is applied; what is transparent is laid on white",
    "of several frames, the first",
)
SIGNALS = (
    "each channel is its z-score over the steps that are there; missing steps (NaN, gaps, fill values) become 0",
    "a constant channel and a signal of one step become 0; integers are converted to fp64 first",
    "nothing is resampled",
)
LONG = {
    "adapt": "long signals: patches widen, so that every step is in one of at most {max_tokens} tokens",
    "cut": "long signals: the first 240,000 steps",
}


def write_card(directory: Path, manifest: dict[str, Any]) -> None:
    """Write `card.md` for a corpus whose manifest has rules for media."""
    rules, held = MediaRules.from_json(manifest["media"]), sum(shard["documents"] for shard in manifest["heldout"])
    counts = [f"{manifest['documents']:,} documents to train on", f"{held:,} held out"]
    counts += [f"{manifest[f'{kind}s']:,} {kind}s" for kind in rules.kinds]
    counts.append(f"{manifest['media_tokens']:,} tokens of them")
    for key, what in (("documents_left_out", "documents left out, listed in left_out.jsonl"),
                      ("signal_steps_left_out", "steps of signals left out")):  # fmt: skip
        if manifest.get(key):
            counts.append(f"{manifest[key]:,} {what}")
    lines = [f"# {manifest['name']}", "", f"A corpus of the domain {manifest['domain']}: {', '.join(counts)}."]
    for kind in rules.kinds.values():
        lines += ["", *(_images(kind) if isinstance(kind, ImageKind) else _signals(kind))]
    (directory / CARD).write_text("\n".join([*lines, ""]))


def _images(kind: ImageKind) -> list[str]:
    return [
        "## Images",
        "",
        f"Rule: {_options(kind.rule)}; files of up to {kind.decode_limit:,} pixels; placeholder {kind.token}.",
        "",
        *(f"- {line}" for line in IMAGES),
    ]


def _signals(kind: SignalKind) -> list[str]:
    long = LONG[kind.rule.long].format(max_tokens=kind.rule.max_tokens)
    lines = ["## Signals", "", f"Rule: {_options(kind.rule)}; placeholder {kind.token}.", ""]
    return [*lines, *(f"- {line}" for line in (*SIGNALS, long))]


def _options(rule: Any) -> str:
    return f"{type(rule).__name__} with " + ", ".join(
        f"{key} {value}" for key, value in dataclasses.asdict(rule).items()
    )
