"""The prompt of a crop: an instruction drawn by the crop's id, and what the document prints about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainer.corpora.captions.crops import Crop
from trainer.data.errors import DataError
from trainer.data.hashing import text_key

BUILT_IN = Path(__file__).with_name("prompts.yaml")
DESCRIBED = ("figure", "table", "formula")  # kinds of crops that are captioned
LISTS = (*DESCRIBED, "length", "caption", "context")
LONGEST = {"caption": 2_000, "context": 4_000}  # characters of the document's text in a prompt
WORDS = 1_000

Templates = Mapping[str, Sequence[str]]


@cache
def read_templates(path: Path = BUILT_IN) -> Templates:
    """The lists of a file such as the built-in one. Raises DataError."""
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        allowed = "a YAML file of lists of texts"
        raise DataError(f"{path}: {reason}; give {allowed}", where=str(path), allowed=allowed) from error
    if not isinstance(found, dict) or set(found) != set(LISTS):
        raise DataError(f"{path}: give the lists {', '.join(LISTS)}", where=str(path), allowed=LISTS)
    for name, texts in found.items():
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            allowed = "a list of one or more texts"
            raise DataError(f"{path}: {name}: give {allowed}", where=f"{path}: {name}", value=texts, allowed=allowed)
    return found


@dataclass(frozen=True)
class Prompt:
    """instruction: what is asked for. text: all that is sent, the instruction and what the document prints."""

    instruction: str
    text: str


def prompt_of(crop: Crop, templates: Templates, *, seed: int = 0, words: int = WORDS, printed: bool = True) -> Prompt:
    """The text that is sent with a crop's image. The same crop and seed give the same text.

    crop: a figure, table or formula. words: the longest answer that is asked for. printed: with the caption and the
    context that the document has, cut to `LONGEST` characters.
    """

    def draw(name: str) -> str:
        texts = templates[name]
        return texts[text_key(str(seed), crop.id, name) % len(texts)].strip()

    instruction = f"{draw(crop.kind)} {draw('length').replace('{words}', str(words))}"
    parts = [instruction]
    for name, text in (("caption", crop.caption), ("context", crop.context)):
        if printed and text.strip():
            parts.append(f"{draw(name)}\n{text.strip()[: LONGEST[name]]}")
    return Prompt(instruction, "\n\n".join(parts))
