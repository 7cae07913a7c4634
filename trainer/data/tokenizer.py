"""Byte-level BPE: training it, and the three things a run needs of it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from trainer.data.errors import DataError

END_OF_DOCUMENT = "<|endofdocument|>"


class Tokenizer:
    """Text to token ids and back; `eos_id` ends every document and is never produced by `encode`."""

    def __init__(self, bpe: tokenizers.Tokenizer) -> None:
        # Text that happens to spell the end-of-document token must not end a document.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.vocab_size: int = bpe.get_vocab_size()
        eos_id = bpe.token_to_id(END_OF_DOCUMENT)
        if eos_id is None:
            raise DataError(f"the tokenizer has no token {END_OF_DOCUMENT}")
        self.eos_id = eos_id

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        try:
            bpe = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: not a tokenizer file: {error}") from error
        return cls(bpe)

    def save(self, path: Path) -> None:
        self._bpe.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end-of-document token. Every string can be encoded."""
        return self._bpe.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; end-of-document tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return self._bpe.decode(ids, skip_special_tokens=True)

    def encode_documents(self, texts: list[str]) -> list[npt.NDArray[np.uint16]]:
        """Each text's ids and the end-of-document token, as uint16."""
        return [np.array([*encoding.ids, self.eos_id], np.uint16) for encoding in self._bpe.encode_batch_fast(texts)]


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
        raise DataError(
            f"the corpus gives only {bpe.get_vocab_size()} of {vocab_size} tokens: raise data.tokens_per_source"
        )
    return Tokenizer(bpe)
