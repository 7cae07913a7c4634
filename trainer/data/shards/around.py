"""The ids that a tokenizer.json puts around every text, such as <s> in front of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import Tokenizer


@dataclass(frozen=True)
class Template:
    """The ids that transformers puts around a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def template_of(tokenizer: Tokenizer, file: Path) -> Template:
    """The template of a tokenizer.json. Raises DataError for one that repeats the text."""
    before: list[int] = []
    after: list[int] = []
    for processor in _processors(tokenizer.state["post_processor"]):
        if processor["type"] in ("BertProcessing", "RobertaProcessing"):
            before, after = [processor["cls"][1], *before], [*after, processor["sep"][1]]
        elif processor["type"] == "TemplateProcessing":
            pieces = processor["single"]
            texts = [number for number, piece in enumerate(pieces) if "Sequence" in piece]
            if len(texts) != 1:
                where, remedy = f"{file}, post_processor", "use a template with the text once"
                raise DataError(f"{where}: the text is there {len(texts)} times; {remedy}", where=where, allowed=remedy)
            before = [*_ids(processor, pieces[: texts[0]]), *before]
            after = [*after, *_ids(processor, pieces[texts[0] + 1 :])]
    return Template(tuple(before), tuple(after))


def _processors(state: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if state is not None and state["type"] == "Sequence":
        for inner in state["processors"]:
            yield from _processors(inner)
    elif state is not None:
        yield state


def _ids(processor: dict[str, Any], pieces: Sequence[dict[str, Any]]) -> Iterator[int]:
    for piece in pieces:
        yield from processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
