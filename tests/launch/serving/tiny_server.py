"""A server over a model with random weights, made in a fraction of a second, and a client of it in the same process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import tokenizers
import torch
from starlette.testclient import TestClient

from launch.serving.conversation import Conversation
from launch.serving.http.app import build
from launch.serving.http.kept import KeptAnswers
from launch.serving.http.model import Limits, Served
from launch.serving.http.worker import Answers, Worker
from tests.trainer.data.small_mixture import DOCUMENTS, texts
from tests.trainer.tiny_run import MODEL
from trainer.chat.template import DEFAULT, ChatTemplate
from trainer.config.model import ModelConfig
from trainer.data.shards.tokenizer import Tokenizer, train_bpe
from trainer.engine.engine import Engine
from trainer.engine.load import Source
from trainer.engine.request import Request
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact, store_for_few_rows

NAME, VOCABULARY, CONTEXT = "tiny", 320, 1000
SPECIAL = ("<|im_start|>", "<|im_end|>")  # of the tokenizer, beside its end-of-document token
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # tokens that text shows


@cache
def _trained() -> str:
    return json.dumps(train_bpe((text for name, count in DOCUMENTS.items() for text in texts(name, count)), 300).state)


def tokenizer() -> Tokenizer:
    made = tokenizers.Tokenizer.from_str(_trained())
    made.add_special_tokens([*SPECIAL])
    made.add_tokens([*ADDED])
    return Tokenizer(made, special_text="encode")


def decoder(seed: int = 0) -> Decoder:
    cfg = ModelConfig(**{**MODEL, "vocab_size": VOCABULARY, "max_position": CONTEXT, "init_std": 0.3})
    model = Decoder(cfg, torch.float32)
    model.init_weights(seed)
    return store_for_few_rows(make_exact(model.requires_grad_(False)))


def served(
    *,
    most: int = 64,
    limits: Limits | None = None,
    model: Decoder | None = None,
    template: str | None = None,
    kept: KeptAnswers | None = None,
    **engine: Any,
) -> Served:
    model = model or decoder()
    made = tokenizer()
    source = Source(None, model.cfg, made, "", frozenset({made.eos_id}), "fp32", "fp32", [])  # type: ignore[arg-type]
    conversation = None if template is None else Conversation(ChatTemplate({DEFAULT: template}), made)
    decode = made.decode if conversation is None else conversation.decode
    runs = Engine(model, **{"decode": decode, "cache_tokens": 2048, "batch": 8, "chunk": 64, **engine})
    return Served(NAME, source, Worker(runs, most=most, kept=kept), conversation, limits or Limits())


@contextmanager
def client(server: Served, **options: Any) -> Iterator[TestClient]:
    with TestClient(build(server, **options)) as made:
        yield made


def watched(server: Served, patch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the engine from now on."""
    found: list[Request] = []
    genuine = server.worker.ask

    def ask(requests: Sequence[Request], *args: Any, **more: Any) -> Answers:
        found.extend(requests)
        return genuine(requests, *args, **more)

    patch.setattr(server.worker, "ask", ask)
    return found
