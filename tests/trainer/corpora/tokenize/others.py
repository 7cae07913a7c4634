"""Tokenizers as libraries leave them in a directory, made here in milliseconds, and texts that they differ on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.data.shards.megatron_index import IndexedTokens

SYLLABLES = ["ka", "ro", "mi", "tel", "su", "ven", "do", "li", "pra", "nox"]
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES[::2]]  # 50
END = "<|endoftext|>"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    *(" ".join(WORDS[n : n + 1 + n % 9]) for n in range(0, 50, 4)),
    "Karo's mitel 007, 1.50 sun't!",
    "  karo  mitel\tsuven\n\n\nlido \r\n",
    "caf\u00e9 cafe\u0301 \ufb01lm \uff21\uff22 \u00b2\u2460",
    "\u4e2d\u6587 \u65e5\u672c \u03b1\u2192\u03b2 \U0001f9ea",
    "karo <think> mitel </think> XYZZY suven",
    "karo " * 60,
    "null",
    "\u0000karo\u0085mitel\u2028suven",
]
SPELLED = [f"karo {END} mitel", "karo <s> mi </s> tel", "<|im_start|>user", "[CLS] karo [SEP]", END]

Save = Callable[[Path], Any]


@cache
def _json(kind: str) -> str:
    bpe: dict[str, Any] = {"vocab_size": 420, "show_progress": False, "special_tokens": [END, "<|im_start|>"]}
    level = {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    made = tokenizers.Tokenizer(models.BPE())
    trainer: Any = trainers.BpeTrainer(**bpe, **level)
    if kind in ("byte", "nfkc", "qwen"):
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        if kind == "nfkc":
            made.normalizer = normalizers.NFKC()
        if kind == "qwen":
            made.normalizer = normalizers.NFC()
            made.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
            )
            made.post_processor = processors.ByteLevel(trim_offsets=False)
    elif kind == "letters":  # neither bytes nor a token for the unknown
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(**bpe)
    elif kind == "llama":
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1), ("</s>", 2)])
        trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=special, max_token_length=8)
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        )
    elif kind == "wordpiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=special)
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    elif kind == "words":
        made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(show_progress=False, special_tokens=["<unk>", "</s>"])
    made.train_from_iterator([" ".join(WORDS)] * 3 + WORDS * 2, trainer)
    return str(made.to_str())


def backend(kind: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(_json(kind))


def put(directory: Path, made: tokenizers.Tokenizer, **config: Any) -> None:
    """tokenizer.json and tokenizer_config.json, as they are."""
    directory.mkdir(exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change(directory: Path, **config: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def saved(directory: Path, kind: str = "byte", called: bool = False, **options: Any) -> None:
    """By transformers' save_pretrained, after a call with options if `called`."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=backend(kind), eos_token=END)
    fast.add_tokens(["<think>", "</think>", "XYZZY"])
    if called:
        fast.pad_token = END
        fast("karo mitel " * 9, **options)
    fast.save_pretrained(directory)


def truncated(directory: Path) -> None:
    saved(directory, called=True, truncation=True, max_length=6)


def padded(directory: Path) -> None:
    saved(directory, called=True, padding="max_length", max_length=40)


def both(directory: Path) -> None:
    saved(directory, called=True, padding="max_length", truncation=True, max_length=8)


def llama(directory: Path, **config: Any) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    put(directory, backend("llama"), **{**names, "add_bos_token": True, "add_eos_token": False, **config})


def qwen(directory: Path) -> None:
    put(directory, backend("qwen"), tokenizer_class="Qwen2Tokenizer", add_bos_token=False, pad_token=END)


def bert(directory: Path, **config: Any) -> None:
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    put(directory, backend("wordpiece"), **{**names, "eos_token": "[SEP]", **config})


def roberta(directory: Path) -> None:
    made = backend("byte")
    made.add_special_tokens(["<s>", "</s>"])
    ids = [(token, made.token_to_id(token)) for token in ("</s>", "<s>")]
    made.post_processor = processors.RobertaProcessing(*ids)
    put(directory, made, eos_token="</s>", bos_token="<s>")


def t5(directory: Path) -> None:
    made = backend("unigram")
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    put(directory, made, eos_token="</s>", unk_token="<unk>")


def llama3(directory: Path) -> None:
    made = backend("byte")
    made.add_special_tokens(["<|first|>"])
    first = ("<|first|>", made.token_to_id("<|first|>"))
    template = processors.TemplateProcessing("<|first|> $A", "<|first|> $A <|first|> $B", [first])
    made.post_processor = processors.Sequence([processors.ByteLevel(), template])
    put(directory, made, bos_token="<|first|>")


def not_special(directory: Path) -> None:
    made = backend("byte")
    made.add_tokens(["<think>", "</think>", "XYZZY", AddedToken("karo", single_word=True, lstrip=True)])
    put(directory, made)


def gap_vocabulary(directory: Path) -> None:
    put(directory, backend("byte"))

    def raise_ids(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary.update({token: number + 1000 for token, number in vocabulary.items() if number >= 300})

    edit(directory, raise_ids)


def gap_end(directory: Path) -> None:
    put(directory, backend("byte"))

    def raise_id(content: dict[str, Any]) -> None:
        content["model"]["vocab"][END] = content["added_tokens"][0]["id"] = 9000

    edit(directory, raise_id)


def gap_beyond(directory: Path) -> None:
    """Ids that 16 bits do not hold, though there are few of them."""
    put(directory, backend("byte"))
    edit(directory, lambda content: content["model"]["vocab"].update({"ka": 70_000}))


def gap_added(directory: Path) -> None:
    not_special(directory)

    def raise_ids(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["id"] += 100 if token["id"] >= 300 else 0

    edit(directory, raise_ids)


KINDS: dict[str, Save] = {
    "byte-level BPE": saved,
    "with truncation saved": truncated,
    "with padding saved": padded,
    "with both saved": both,
    "Unigram": lambda d: put(d, backend("unigram"), eos_token="</s>", unk_token="<unk>"),
    "Unigram with an end of its own": t5,
    "WordPiece with BERT's ends": bert,
    "BPE without the unknown": lambda d: put(d, backend("letters")),
    "Llama": llama,
    "Llama without a bos": lambda d: llama(d, add_bos_token=False),
    "Llama with an eos": lambda d: llama(d, add_eos_token=True),
    "Llama as its own class": lambda d: llama(d, tokenizer_class="LlamaTokenizer", legacy=False),
    "Llama 3": llama3,
    "Roberta": roberta,
    "Qwen": qwen,
    "added tokens that are not special": not_special,
    "NFKC": lambda d: put(d, backend("nfkc")),
    "words": lambda d: put(d, backend("words"), eos_token="</s>", unk_token="<unk>"),
    "gap in the vocabulary": gap_vocabulary,
    "gap before the end": gap_end,
    "gap before added tokens": gap_added,
    "gap beyond 16 bits": gap_beyond,
    "bos by configuration": lambda d: put(d, backend("byte"), bos_token="<|im_start|>", add_bos_token=True),
    "longest text by configuration": lambda d: put(d, backend("byte"), model_max_length=5),
    "end as an object": lambda d: put(
        d, backend("byte"), eos_token={"__type": "AddedToken", "content": END, "special": True, "normalized": False}
    ),
    "lower case by configuration": lambda d: put(d, backend("byte"), do_lower_case=True),
    "prefix space by configuration": lambda d: put(d, backend("byte"), add_prefix_space=True),
    "cleanup by configuration": lambda d: put(d, backend("byte"), clean_up_tokenization_spaces=True),
}


def documents_of(out: Path, manifest: dict[str, Any]) -> Counter[tuple[int, ...]]:
    """The stored documents of both splits."""
    found: Counter[tuple[int, ...]] = Counter()
    for shard in [*manifest["shards"], *manifest["heldout"]]:
        store = IndexedTokens(out / shard["stem"])
        found.update(tuple(store.document(number).tolist()) for number in range(store.num_documents))
    return found


def expected(directory: Path, texts: Sequence[str], end: str, special_text: str = "spell") -> Counter[tuple[int, ...]]:
    """The ids that transformers' own call gives for texts, each with one end token."""
    from transformers import AutoTokenizer

    theirs, found = AutoTokenizer.from_pretrained(directory), Counter[tuple[int, ...]]()
    number = theirs.convert_tokens_to_ids(end)
    ended = theirs("karo")["input_ids"][-1] == number  # by the tokenizer itself
    for text in texts:
        options = {"split_special_tokens": special_text == "spell", "verbose": False}
        if theirs(text, add_special_tokens=False, **options)["input_ids"]:
            found[(*theirs(text, **options)["input_ids"], *([] if ended else [number]))] += 1
    return found
