"""A server over a model with towers and random weights, which sees images and signals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from launch.serving.conversation import Conversation
from launch.serving.http.media import Sources
from launch.serving.http.model import Limits, Served
from launch.serving.http.worker import Worker
from tests.trainer.data.media import illustrated
from trainer.chat.template import DEFAULT, ChatTemplate
from trainer.config.compose import compose
from trainer.data.media.rules import MediaRules, SignalKind
from trainer.data.media.signals import SignalRule
from trainer.data.shards.tokenizer import Tokenizer
from trainer.engine.engine import Engine
from trainer.engine.load import Source
from trainer.model.exact.switch import make_exact
from trainer.model.multimodal import Multimodal

# As the published template: content is a text or parts; what is neither image nor text is left out.
PARTS = """
{%- for m in messages %}{{- '<' + m.role + '>' }}
{%- if m.content is string %}{{- m.content }}{% else %}{%- for p in m.content %}
{%- if p.type == 'image' %}{{- 'Picture: <img><IMG_CONTEXT></img>' }}{% elif 'text' in p %}{{- p.text }}{% endif %}
{%- endfor %}{% endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<assistant>' }}{% endif %}
"""


def vision_served(files: Path, *, cache_tokens: int = 1024) -> Served:
    """files: the directory whose media requests may name."""
    made = Tokenizer(illustrated.with_markers()._bpe, special_text="encode")
    rules = illustrated.rules()
    rules = MediaRules(rules.image, replace(rules.signal, rule=SignalRule(max_tokens=8)))
    assert isinstance(rules.signal, SignalKind)
    tokens = {"image_token": rules.image.token, "signal_token": rules.signal.token}
    cfg = replace(compose(["recipe=toy_multimodal"]).model, **tokens)
    with torch.device("meta"):
        model = Multimodal(cfg)
    model.to_empty(device="cpu").init_weights(seed=3)
    source = Source(
        None, cfg, made, "", frozenset({made.eos_id}), "fp32", "fp32", [],
        {rules.image.token: "an image", rules.signal.token: "a signal"}, lambda: rules,
    )  # fmt: skip
    engine = Engine(make_exact(model.requires_grad_(False)), decode=made.decode, cache_tokens=cache_tokens, batch=4)
    conversation = Conversation(ChatTemplate({DEFAULT: PARTS}), made)
    return Served(
        "tiny", source, Worker(engine, most=8), conversation, Limits(body=2_000_000), Sources(files, http=True)
    )
