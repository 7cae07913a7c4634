"""Runs a suite on files that a test wrote, with given answers, as `octavo evaluate` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.evaluation.registry import SUITES
from trainer.evaluation.suite import Item, Scored, Suite, Summary

# the smallest PNG: one white pixel
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mP8/x8AAwMCAO+ip1sAAAAASUVORK5CYII="  # gitleaks:allow


def suite(name: str) -> Suite:
    return next(one for one in SUITES if one.name == name)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def items_of(name: str, directory: Path) -> list[Item]:
    """The items of a suite; reading twice gives the same, ids are unique, and references and meta are JSON."""
    first, again = ([*suite(name).read(directory)] for _ in range(2))
    assert first == again
    assert len({item.id for item in first}) == len(first)
    for item in first:
        assert json.loads(json.dumps([item.reference, dict(item.meta)])) == [item.reference, dict(item.meta)]
    return first


def answered(name: str, items: list[Item], answer: Callable[[Item], str], verdict: str | None = None) -> Summary:
    one = suite(name)
    scored = []
    for item in items:
        text = answer(item)
        values = one.score(item, text, verdict)
        assert json.loads(json.dumps(values)) == values  # the ledger keeps it as JSON
        scored.append(Scored(item, text, values))
    return one.summarise(scored)


def text_of(item: Item) -> str:
    """All text of the last message."""
    content = item.messages[-1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def images_of(item: Item) -> list[Path]:
    content = item.messages[-1]["content"]
    return [Path(part["image_url"]["url"]) for part in content if part["type"] == "image_url"]
