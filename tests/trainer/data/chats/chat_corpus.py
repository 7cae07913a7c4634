"""A small corpus of chats with its tokenizer and template, and runs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.trainer.chat.templates import QWEN3
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config
from trainer.config.mixture import ChatSourceConfig
from trainer.corpora.chats.questions import conversation

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 300
LINES = [json.dumps(conversation(number), ensure_ascii=False) for number in range(40)]


def write_corpus(directory: Path, lines: list[str] | None = None, template: str = QWEN3) -> Path:
    """chats.jsonl, tokenizer.json with CONTROL, and a template beside it, that drops thinking of earlier turns."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "chats.jsonl").write_text("\n".join(LINES if lines is None else lines), encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = VOCAB_SIZE - len(CONTROL)
    bpe.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    bpe.add_special_tokens(CONTROL)
    bpe.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "bos_token": None}))
    return directory


def chat_config(directory: Path, corpus: Path, *, data: dict[str, Any] | None = None, **overrides: Any) -> Config:
    """A tiny run in `directory` on a corpus of `write_corpus`."""
    overrides = {"steps": 3, "log_every": 1, **overrides}
    cfg = tiny_config(directory, model={"vocab_size": VOCAB_SIZE}, **overrides)
    cfg.data.name, cfg.data.seq_len, cfg.data.cache_dir = "chat", 512, str(corpus / "cache")
    cfg.data.root, cfg.data.tokenizer = str(corpus), str(corpus)
    cfg.data.chats = {"mine": ChatSourceConfig(path="chats.jsonl")}
    cfg.data.holdout_fraction = 0.1
    for key, value in (data or {}).items():
        setattr(cfg.data, key, value)
    return cfg
