"""Tokenizers in Hugging Face's `tokenizer.json`: training a byte-level BPE, and what a run needs of any of them."""

import json
from collections.abc import Container, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainer.data.errors import DataError

END_OF_DOCUMENT = "<|endofdocument|>"
CONFIG = "tokenizer_config.json"

SpecialText = Literal["spell", "encode"]


class Tokenizer:
    """Text to token ids and back; `eos_id` ends every document.

    special_text: what becomes of text that spells a special token: with "spell" it is text like any other, so that it
    cannot end a document; with "encode" it becomes the token. before: ids that open every document, such as <s>.
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        end_of_document: str = END_OF_DOCUMENT,
        *,
        special_text: SpecialText = "spell",
        before: Sequence[int] = (),
    ) -> None:
        bpe.encode_special_tokens = special_text == "spell"
        self._bpe = bpe
        self.before = [*before]
        self.special_text = special_text
        ids = bpe.get_vocab(with_added_tokens=True)
        # Ids may have gaps: what indexes a table by id needs a row up to the largest one.
        self.vocab_size: int = 1 + max(ids.values(), default=-1)
        eos_id = bpe.token_to_id(end_of_document)
        if eos_id is None:
            text = f"the tokenizer has no token {end_of_document}; use --eos to choose a token that it has"
            raise DataError(text, where="--eos", value=end_of_document, allowed="a token of the tokenizer")
        if shared := [token for token, number in ids.items() if number == eos_id and token != end_of_document]:
            text = f"{end_of_document} and {min(shared)} have the same id {eos_id}; use --eos to choose another token"
            raise DataError(text, where="--eos", value=end_of_document, allowed="a token with an id of its own")
        self.eos_id: int = eos_id
        self.end_of_document = end_of_document

    @classmethod
    def load(
        cls,
        path: Path,
        end_of_document: str | None = None,
        *,
        special_text: SpecialText = "spell",
        before: Sequence[int] = (),
    ) -> "Tokenizer":
        """From a `tokenizer.json` or a directory with one.

        end_of_document: the token that ends documents; by default ours, or else the `eos_token` of the
        `tokenizer_config.json` beside it. Raises DataError where there is no such file or no such token.
        """
        path = tokenizer_file(path)
        bpe = read_tokenizer(path)
        if end_of_document is None and bpe.token_to_id(END_OF_DOCUMENT) is None:
            end_of_document = named_token(path.with_name(CONFIG), "eos_token")
            if end_of_document is None:
                text = f"{path} does not define an end-of-document token; choose one with --eos"
                raise DataError(text, where="--eos", allowed="a token of the tokenizer")
        try:
            end = END_OF_DOCUMENT if end_of_document is None else end_of_document
            return cls(bpe, end, special_text=special_text, before=before)
        except DataError as error:
            raise DataError(f"{path}: {error}", where="--eos", value=error.value, allowed=error.allowed) from None

    def save(self, path: Path) -> None:
        self._bpe.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` at the start of a document, without an end-of-document token."""
        return [*self.before, *self._bpe.encode(text, add_special_tokens=False).ids]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; end-of-document tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._bpe.decode(ids, skip_special_tokens=True)

    def answer_text(self, ids: Sequence[int], ends: Container[int] | None = None) -> str:
        """The text of an answer of a model: all that it drew, but for one token at its end that ends a turn. ends: such
        tokens; None: the one that ends documents.

        Special tokens are spelled, and an id without a token is U+FFFD: a reward must not take an answer with either
        for the answer without.
        """
        last = ids and ids[-1] in ((self.eos_id,) if ends is None else ends)
        return visible_text(self._bpe, ids[:-1] if last else ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts alone: on all cores unless TOKENIZERS_PARALLELISM=false is set.

        Raises DataError for a text that has characters that the tokenizer neither knows nor has a token for.
        """
        try:
            return [encoding.ids for encoding in self._bpe.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:  # the library raises plain Exception
            text = f"the tokenizer cannot encode the text: {error}; use one with a token for unknown text"
            raise DataError(text, where="--tokenizer", value=str(error), allowed="another --tokenizer") from error

    @cached_property
    def state(self) -> dict[str, Any]:
        """The content of the tokenizer.json, as the library understands it."""
        found: dict[str, Any] = json.loads(self._bpe.to_str())
        return found

    def id_of(self, token: str) -> int | None:
        found: int | None = self._bpe.token_to_id(token)
        return found

    def token(self, number: int) -> str | None:
        found: str | None = self._bpe.id_to_token(number)
        return found

    @property
    def added(self) -> dict[str, bool]:
        """The tokens that are found in text before it is cut into pieces, and if they are special."""
        return {token.content: token.special for token in self._bpe.get_added_tokens_decoder().values()}


def visible_text(library: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, with special tokens spelled and U+FFFD for an id without a token."""
    parts: list[list[int]] = [[]]
    for number in ids:
        if library.id_to_token(number) is None:
            parts.append([])
        else:
            parts[-1].append(number)
    return "\N{REPLACEMENT CHARACTER}".join(library.decode(part, skip_special_tokens=False) for part in parts)


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that `path` names: the file itself, or the one in a directory."""
    return path / "tokenizer.json" if path.is_dir() else path


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, or of a directory with one, as it encodes a whole text.

    The file keeps the truncation and padding of the last call before it was saved. They belong to that call, as
    transformers sees it too, and are left out. Raises DataError for a file that cannot be read, and for one with
    dropout, which would give other ids at every call.
    """
    path = tokenizer_file(path)
    if not path.is_file():
        remedy = "give a tokenizer.json or a directory that contains one"
        raise DataError(f"{path} does not exist; {remedy}", where=str(path), allowed=remedy)
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        remedy = "give a tokenizer.json in the format of Hugging Face's tokenizers library"
        text = f"{path} is not a tokenizer file ({error}); {remedy}"
        raise DataError(text, where=str(path), allowed=remedy) from error
    found.no_truncation()
    found.no_padding()
    dropout = getattr(found.model, "dropout", None)
    if dropout:
        remedy = 'set "dropout" of its "model" to null'
        text = f"{path} drops merges at random (dropout {dropout:.3g}), so every call gives other ids; {remedy}"
        raise DataError(text, where=str(path), value=dropout, allowed=remedy)
    return found


def read_config(path: Path) -> dict[str, Any]:
    """A `tokenizer_config.json`, {} where there is none. Raises DataError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        text = f"{path} cannot be read ({error}); repair it, or name the token that ends a document with --eos"
        raise DataError(text, where=str(path), allowed="--eos") from error
    return found


def named_token(path: Path, key: str) -> str | None:
    """The token that a `tokenizer_config.json` names under `key`, None where it names none. Raises DataError."""
    named = read_config(path).get(key)
    token = named.get("content") if isinstance(named, dict) else named
    if token is None or isinstance(token, str):
        return token
    text = f"{path}: {key} is {json.dumps(named)}, not a token; repair it, or name the token with --eos"
    raise DataError(text, where=f"{path}, {key}", value=named, allowed="a string")


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of `vocab_size` tokens: the end-of-document token (id 0), the 256 bytes, the rest merges.

    Raises DataError where the texts are too short to give that many merges.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,  # no token for the rulers and dashed lines of source files
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer=trainer)
    if bpe.get_vocab_size() != vocab_size:
        found = bpe.get_vocab_size()
        raise DataError(
            f"the corpus has text for only {found} of {vocab_size} tokens; raise data.tokens_per_source",
            where="data.tokens_per_source",
            value=found,
            allowed="a larger number",
        )
    return Tokenizer(bpe)
