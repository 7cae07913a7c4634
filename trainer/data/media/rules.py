"""The rules and placeholder tokens of the images and signals of a corpus, as its manifest has them.

No torch here. A corpus is tokenized by the same rules that its media are prepared by when it is read, so the number of
placeholders always is that of the embeddings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule, decode, size_of
from trainer.data.media.store import IMAGE, KINDS

DECODE_LIMIT = 178_956_970  # of an image that is decoded: Pillow's limit for what may be a decompression bomb
IMAGE_RULES = {"patches": PatchRule, "tiles": TileRule}
Facts = dict[str, Any]


@dataclass(frozen=True)
class ImageKind:
    """Images: `rule` makes patches or tiles of them, and each becomes `before`, placeholders and `after`.

    token: id of the placeholder of one embedding. decode_limit: pixels of a file that is decoded at all.
    """

    rule: PatchRule | TileRule
    token: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    decode_limit: int = DECODE_LIMIT

    def store(self, data: bytes, where: str) -> tuple[bytes, int]:
        """The bytes to keep of an image file, and its placeholders. Raises DataError where it cannot be decoded."""
        height, width, _ = decode(data, where=where, max_pixels=self.decode_limit).shape
        return data, self.rule.tokens(height, width, where)

    def tokens(self, data: bytes, where: str) -> int:
        """Placeholders of stored bytes, by their header."""
        return self.rule.tokens(*size_of(data, where), where)

    def prepare(self, data: bytes, where: str) -> Any:
        """The input of the vision tower for one image: patches and their grid, or tiles."""
        return self.rule.prepare(decode(data, where=where, max_pixels=self.decode_limit), where)

    def to_json(self) -> Facts:
        name = next(name for name, rule in IMAGE_RULES.items() if isinstance(self.rule, rule))
        facts = {key: value for key, value in dataclasses.asdict(self).items() if key != "rule"}
        return {"rule": name, **facts, "options": dataclasses.asdict(self.rule)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ImageKind:
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["options"].items()}
        rule = IMAGE_RULES[facts["rule"]](**options)
        return cls(rule, facts["token"], tuple(facts["before"]), tuple(facts["after"]), facts["decode_limit"])


@dataclass(frozen=True)
class MediaRules:
    """The kinds of media that the documents of a corpus may have."""

    image: ImageKind | None = None

    def of(self, kind: int) -> ImageKind:
        """The rule of a kind of `store`. Raises DataError for one that the corpus does not have."""
        found = self.image if kind == IMAGE else None
        if found is None:
            name = KINDS[kind] if kind in range(len(KINDS)) else kind
            raise DataError(f"there is no rule for the kind of media {name}", where="media", value=kind)
        return found

    @property
    def kinds(self) -> dict[str, ImageKind]:
        """The kinds by their names in a document: image."""
        return {name: kind for name, kind in (("image", self.image),) if kind is not None}

    @property
    def marks(self) -> frozenset[int]:
        """The ids that text may not have: those of placeholders."""
        return frozenset(kind.token for kind in self.kinds.values())

    def to_json(self) -> Facts:
        # Tuples become lists, so that a plan equals itself after it is read again.
        facts: Facts = json.loads(json.dumps({name: kind.to_json() for name, kind in self.kinds.items()}))
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> MediaRules:
        return cls(ImageKind.from_json(facts["image"]) if "image" in facts else None)
