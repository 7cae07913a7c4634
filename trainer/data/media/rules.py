"""The rules and placeholder tokens of the images and signals of a corpus, as its manifest has them.

No torch here. A corpus is tokenized by the same rules that its media are prepared by when it is read, so the number of
placeholders always is that of the embeddings.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.data.errors import DataError
from trainer.data.media.images import DECODE_LIMIT, HALF, PatchRule, TileRule, decode, size_of
from trainer.data.media.readers.recording import Recording
from trainer.data.media.signals import SignalRule
from trainer.data.media.store import IMAGE, KINDS, SIGNAL, Stored

if TYPE_CHECKING:
    from trainer.config.model import ModelConfig

Rule = PatchRule | TileRule | SignalRule
IMAGE_RULES = {"patches": PatchRule, "tiles": TileRule}
RULES: dict[str, Any] = {**IMAGE_RULES, "signals": SignalRule}
# Fields of a rule that are those of its tower; the tower of the other rule has another kind.
TOWER_FIELDS = {
    PatchRule: ("native", ("patch_size", "merge", "frames")),
    TileRule: ("intern_vit", ("tile_size", "patch_size", "merge")),
}
Facts = dict[str, Any]
Difference = tuple[str, Any, Any]  # key of the model, its value, and the value that the corpus needs


@dataclass(frozen=True)
class ImageKind:
    """Images: `rule` makes patches or tiles of them, and each becomes `before`, placeholders and `after`.

    token: id of the placeholder of one embedding. decode_limit: pixels of a file that is decoded at all. field: of a
    row, with its images, beside the one with its text. in_text: the word that stands for each of them in the text.
    """

    rule: PatchRule | TileRule
    token: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    decode_limit: int = DECODE_LIMIT
    field: str = ""
    in_text: str = ""

    def store(self, data: bytes, where: str) -> Stored:
        """The stored form of an image file. Raises DataError where it cannot be decoded."""
        height, width, _ = decode(data, where=where, max_pixels=self.decode_limit).shape
        return Stored(IMAGE, 0, self.rule.tokens(height, width, where), data)

    def tokens(self, data: bytes, where: str) -> int:
        """Placeholders of stored bytes, by their header."""
        return self.rule.tokens(*size_of(data, where), where)

    def prepare(self, data: bytes, where: str) -> Any:
        """The input of the vision tower for one image: patches and their grid, or tiles. Patches stay bytes, an eighth
        of the floats that the tower makes of them, where it is the published mean and deviation that normalise them."""
        pixels = decode(data, where=where, max_pixels=self.decode_limit)
        if isinstance(self.rule, PatchRule) and self.rule.mean == self.rule.std == HALF:
            return self.rule.cut(pixels, where)
        return self.rule.prepare(pixels, where)

    def differences(self, model: ModelConfig) -> Iterator[Difference]:
        """The keys of a model whose tower or placeholder is not the one of the rule."""
        kind, fields = TOWER_FIELDS[type(self.rule)]
        if model.vision is None or model.vision.kind != kind:
            yield "model.vision.kind", model.vision and model.vision.kind, kind
            return
        for field in fields:
            has, needs = getattr(model.vision, field), getattr(self.rule, field)
            if has != needs:
                yield f"model.vision.{field}", has, needs
        if model.image_token != self.token:
            yield "model.image_token", model.image_token, self.token

    def to_json(self) -> Facts:
        """The rule as JSON has it; `from_json` gives it back."""
        return {**dataclasses.asdict(self), **rule_to_json(self.rule)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ImageKind:
        """From what `to_json` returned, or a manifest has of it."""
        rule = rule_from_json(facts)
        assert not isinstance(rule, SignalRule)
        return cls(rule, **_without_rule(facts))


WITH_SIGNALS = "model=toy_multimodal or model=intern_s1_pro"  # have towers for signals


@dataclass(frozen=True)
class SignalKind:
    """Signals, stored as `Recording.to_bytes` writes them. All else is as of `ImageKind`."""

    rule: SignalRule
    token: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    field: str = ""
    in_text: str = ""

    def store(self, data: bytes, where: str) -> Stored:
        """The stored form of a recording. Raises DataError where it cannot be prepared."""
        recording = Recording.from_bytes(data, where=where)
        self.prepare(data, where)
        tokens = self.rule.tokens(recording.steps, recording.rate, where)
        unknown = recording.rate is None or recording.rate <= 0  # as `signal_patches.known_rate` takes it
        return Stored(SIGNAL, 0, tokens, data, self.rule.left_out(recording.steps), unknown)

    def tokens(self, data: bytes, where: str) -> int:
        """Placeholders of a stored recording."""
        recording = Recording.from_bytes(data, where=where)
        return self.rule.tokens(recording.steps, recording.rate, where)

    def prepare(self, data: bytes, where: str) -> Any:
        """The input of the tower for one signal: a `PreparedSignal`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the steps that are left out: the manifest counts them
            return self.rule.prepare(Recording.from_bytes(data, where=where), where)

    def differences(self, model: ModelConfig) -> Iterator[Difference]:
        """The keys of a model whose tower or placeholder is not the one of the rule."""
        if model.signals is None:
            yield "model.signals", None, WITH_SIGNALS
        elif model.signal_token != self.token:
            yield "model.signal_token", model.signal_token, self.token

    def to_json(self) -> Facts:
        """The rule as JSON has it; `from_json` gives it back."""
        return {**dataclasses.asdict(self), **rule_to_json(self.rule)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> SignalKind:
        """From what `to_json` returned, or a manifest has of it."""
        rule = rule_from_json(facts)
        assert isinstance(rule, SignalRule)
        return cls(rule, **_without_rule(facts))


def rule_to_json(rule: Rule) -> Facts:
    """The name and the options of a rule as JSON has them; `rule_from_json` gives it back."""
    name = next(name for name, kind in RULES.items() if isinstance(rule, kind))
    facts: Facts = json.loads(json.dumps({"rule": name, "options": dataclasses.asdict(rule)}))
    return facts


def rule_from_json(facts: Mapping[str, Any]) -> Rule:
    """From what `rule_to_json` returned; other keys do not matter."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["options"].items()}
    rule: Rule = RULES[facts["rule"]](**options)
    return rule


def _without_rule(facts: Mapping[str, Any]) -> Facts:
    found = {key: value for key, value in facts.items() if key not in ("rule", "options")}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


@dataclass(frozen=True)
class MediaRules:
    """The kinds of media that the documents of a corpus may have."""

    image: ImageKind | None = None
    signal: SignalKind | None = None

    def of(self, kind: int) -> ImageKind | SignalKind:
        """The rule of a kind of `store`. Raises DataError for one that the corpus does not have."""
        name = KINDS[kind] if kind in range(len(KINDS)) else str(kind)
        if name not in self.kinds:
            raise DataError(f"there is no rule for the kind of media {name}", where="media", value=kind)
        return self.kinds[name]

    @property
    def kinds(self) -> dict[str, ImageKind | SignalKind]:
        """The kinds by their names in a document: image, signal."""
        found = {"image": self.image, "signal": self.signal}
        return {name: kind for name, kind in found.items() if kind is not None}

    @property
    def placeholders(self) -> frozenset[int]:
        """The ids that text may not have."""
        return frozenset(kind.token for kind in self.kinds.values())

    def to_json(self) -> Facts:
        """The rule as JSON has it; `from_json` gives it back."""
        # Tuples become lists, so that a plan equals itself after it is read again.
        facts: Facts = json.loads(json.dumps({name: kind.to_json() for name, kind in self.kinds.items()}))
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> MediaRules:
        """From what `to_json` returned, or a manifest has of it."""
        image, signal = facts.get("image"), facts.get("signal")
        return cls(image and ImageKind.from_json(image), signal and SignalKind.from_json(signal))
