"""The card of a corpus with images or signals: what it holds, and how they become the towers' inputs, for a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.data.media.rules import ImageKind, MediaRules, SignalKind
from trainer.data.media.statements import options, statements

CARD = "card.md"
WITHOUT_RATE = "without a sampling rate, read as a quarter of their steps in Hz, 1 or more"


def write_card(directory: Path, manifest: dict[str, Any]) -> None:
    """Write `card.md` for a corpus whose manifest has rules for media."""
    rules, held = MediaRules.from_json(manifest["media"]), sum(shard["documents"] for shard in manifest["heldout"])
    counts = [f"{manifest['documents']:,} documents to train on", f"{held:,} held out"]
    counts += [f"{manifest[f'{kind}s']:,} {kind}s" for kind in rules.kinds]
    counts.append(f"{manifest['media_tokens']:,} tokens of them")
    for key, what in (("documents_left_out", "documents left out, listed in left_out.jsonl"),
                      ("signal_steps_left_out", "steps of signals left out"),
                      ("signals_without_rate", f"signals {WITHOUT_RATE}")):  # fmt: skip
        if manifest.get(key):
            counts.append(f"{manifest[key]:,} {what}")
    lines = [f"# {manifest['name']}", "", f"A corpus of the domain {manifest['domain']}: {', '.join(counts)}."]
    for kind in rules.kinds.values():
        lines += ["", *(_images(kind) if isinstance(kind, ImageKind) else _signals(kind))]
    (directory / CARD).write_text("\n".join([*lines, ""]))


def _images(kind: ImageKind) -> list[str]:
    rule = f"Rule: {options(kind.rule)}; files of up to {kind.decode_limit:,} pixels; placeholder {kind.token}."
    return ["## Images", "", rule, "", *(f"- {line}" for line in statements(kind.rule))]


def _signals(kind: SignalKind) -> list[str]:
    rule = f"Rule: {options(kind.rule)}; placeholder {kind.token}."
    return ["## Signals", "", rule, "", *(f"- {line}" for line in statements(kind.rule))]
