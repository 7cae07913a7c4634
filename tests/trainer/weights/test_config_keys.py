"""Keys of config.json: which values are this model, which are refused, and which are reported as unknown."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainer.model.tiny import assert_close, build, logits, model_config, randomise_norms, relative
from tests.trainer.weights.directories import Checkpoint, checkpoint
from trainer.model.decoder import Decoder
from trainer.weights.config_json.keys import DEFAULTS, NEUTRAL, NEUTRAL_ROPE
from trainer.weights.config_json.text import unknown_keys
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_read import from_huggingface
from trainer.weights.hf_survey import survey_directory

QWEN3 = {"model_type": "qwen3_moe", "norm_topk_prob": True, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def source() -> Decoder:
    return build(model_config())


def test_absent_keys_have_the_values_of_transformers_own_configuration():
    from transformers import Qwen3MoeConfig

    found = Qwen3MoeConfig()
    there = found.to_dict() | {"num_experts": found.num_experts, "rope_theta": found.rope_parameters["rope_theta"]}
    assert DEFAULTS["qwen3_moe"] == {key: there[key] for key in DEFAULTS["qwen3_moe"]}
    model = model_config_from_huggingface(QWEN3)
    assert (model.hidden_size, model.head_dim, model.num_experts, model.norm_eps) == (2048, 64, 128, 1e-6)


@pytest.mark.parametrize("key", NEUTRAL)
def test_a_key_of_another_function_is_refused_at_all_but_its_neutral_values(key):
    model_config_from_huggingface(QWEN3 | {key: True if key == "norm_topk_prob" else None})
    for value in NEUTRAL[key]:
        model_config_from_huggingface(QWEN3 | {key: value})
    with pytest.raises(HuggingFaceError) as refused:
        model_config_from_huggingface(QWEN3 | {key: "another"})
    assert (refused.value.where, refused.value.value) == (key, "another")
    assert refused.value.allowed == (NEUTRAL[key] or "no such key")
    with pytest.raises(HuggingFaceError) as refused:  # around a text model too
        model_config_from_huggingface({"model_type": "interns1", key: "another", "text_config": QWEN3})
    assert refused.value.where == key


@pytest.mark.parametrize("key", NEUTRAL_ROPE)
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_a_key_of_other_positions_is_refused_at_all_but_its_neutral_values(name, key):
    for value in NEUTRAL_ROPE[key]:
        model_config_from_huggingface(QWEN3 | {name: {"rope_theta": 500.0, key: value}})
    with pytest.raises(HuggingFaceError) as refused:
        model_config_from_huggingface(QWEN3 | {name: {"rope_theta": 500.0, key: "another"}})
    assert (refused.value.where, refused.value.value) == (key, "another")


@pytest.mark.parametrize(
    ("key", "neutral"),
    [("attention_multiplier", 0.125), ("query_pre_attn_scalar", 64), ("rotary_dim", 64),
     ("layer_types", ["full_attention"] * 2), ("mlp_layer_types", ["sparse", "sparse"])],
)  # fmt: skip
def test_a_key_that_is_neutral_at_a_size_of_the_model(key, neutral):
    model_config_from_huggingface(QWEN3 | {key: neutral})
    with pytest.raises(HuggingFaceError) as refused:
        model_config_from_huggingface(QWEN3 | {key: [neutral]})
    assert (refused.value.where, refused.value.allowed) == (key, (neutral,))


def test_no_key_that_transformers_or_the_published_models_write_is_unknown(reference):
    from transformers import InternVLConfig, Qwen3MoeConfig

    text = Qwen3MoeConfig().to_dict()
    assert unknown_keys(text) == []
    assert unknown_keys(InternVLConfig(text_config=text).to_dict()) == []
    for name in ("interns1", "interns1_pro"):
        assert unknown_keys(json.loads((reference / "tiny" / name / "config.json").read_text())) == []


# ---- multimodal directories


def top(**changed: Any) -> Callable[[Checkpoint], object]:
    return lambda written: written.config.update(changed)


def inside(**changed: Any) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].update(changed)


def without(key: str) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].pop(key)


READ = None
ROWS: dict[str, tuple[Callable[[Checkpoint], object], str | None]] = {
    "tie_word_embeddings at the top": (top(tie_word_embeddings=True), "tie_word_embeddings"),
    "tie_word_embeddings in the text_config, false at the top": (
        lambda written: (top(tie_word_embeddings=False)(written), inside(tie_word_embeddings=True)(written)),
        "tie_word_embeddings",
    ),
    "tie_word_embeddings null at the top": (top(tie_word_embeddings=None), READ),
    "final_logit_softcapping at the top": (top(final_logit_softcapping=30.0), "final_logit_softcapping"),
    "is_causal false at the top": (top(is_causal=False), "is_causal"),
    "num_experts_per_tok at the top, another": (top(num_experts_per_tok=2), "num_experts_per_tok"),
    "num_experts_per_tok at the top, the same": (top(num_experts_per_tok=4), READ),
    "rope_theta at the top, another": (top(rope_theta=1e6), "rope_theta"),
    "rope_scaling at the top, another": (top(rope_scaling={"rope_type": "default"}), "rope_scaling"),
    "model_type llava": (top(model_type="llava"), "model_type"),
    "model_type interns1": (top(model_type="interns1"), READ),
    "model_type absent at the top": (lambda written: written.config.pop("model_type"), READ),
    "model_type absent in the text_config": (without("model_type"), "model_type"),
    "a dense text model": (inside(model_type="qwen3"), "model_type"),
    "a qwen3_moe text model with FoPE": (inside(model_type="qwen3_moe"), "fope_init_factor"),
    "a qwen3_moe text model with router groups": (
        inside(model_type="qwen3_moe", rope_scaling=None), "router_n_groups"
    ),
    "norm_topk_prob absent": (without("norm_topk_prob"), "norm_topk_prob"),
    "weights to be quantised in loading": (
        top(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), "quant_method"
    ),
    "weights in FP8, as the key says": (top(quantization_config={"quant_method": "fp8"}), READ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_a_multimodal_directory_is_read_or_the_key_is_named(tmp_path, source, row):
    change, where = ROWS[row]
    written = checkpoint(tmp_path, source)
    change(written)
    if where is READ:
        assert_close(from_huggingface(written.write()).state_dict(), source.state_dict(), 0.0)
        return
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(written.write())
    assert refused.value.where == where
    assert refused.value.allowed is not None


def test_unknown_keys_are_reported_in_one_warning_and_null_is_absent(tmp_path, source):
    written = checkpoint(tmp_path, source)
    written.config |= {"mystery": 1, "nothing": None}
    written.config["text_config"]["use_riddles"] = True
    written.config["text_config"]["rope_scaling"]["phase"] = 0.5
    named = ["mystery", "text_config.use_riddles", "text_config.rope_scaling.phase"]
    opened = survey_directory(open_directory(written.write()))
    assert opened.ignored_keys == named
    with pytest.warns(UserWarning, match="mystery") as warned:
        from_huggingface(tmp_path)
    (warning,) = warned
    assert all(key in str(warning.message) for key in [*named, f"{tmp_path}/config.json"])
    assert "nothing" not in str(warning.message)
    for section, key in ((written.config, "mystery"), (written.config["text_config"], "use_riddles")):
        del section[key]
    del written.config["text_config"]["rope_scaling"]["phase"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_huggingface(written.write())


@pytest.mark.slow  # imports InternVL; the rows above cover its keys
def test_another_model_around_a_qwen3_moe_text_model(tmp_path):
    """InternVL as transformers writes it: its logits for text are ours."""
    from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLForConditionalGeneration

    text = {
        "model_type": "qwen3_moe", "vocab_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "norm_topk_prob": True, "initializer_range": 0.2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": [28, 28], "patch_size": [14, 14],
    }  # fmt: skip
    torch.manual_seed(0)
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=15, tie_word_embeddings=False)
    model = InternVLForConditionalGeneration(config)
    randomise_norms(model.model.language_model)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        theirs = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).logits
        assert relative(logits(from_huggingface(tmp_path), ids), theirs) < 1e-5
