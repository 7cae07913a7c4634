"""Checkpoints with towers: published results, every tensor there and back, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.errors import Fault
from tests.trainer.model.tiny import assert_close, next_tokens, relative
from tests.trainer.model.towers.signal_formula import signal_formula
from trainer.data.batch import IGNORE
from trainer.model.multimodal import Multimodal
from trainer.model.towers.time_series import Signal
from trainer.model.towers.vision import Images
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.towers.read import load_multimodal, published_tensors

pytestmark = pytest.mark.usefixtures("poisoned_memory")
BOUND = 1e-5
IMAGE, SIGNAL = 300, 302  # placeholders of the reference checkpoints


@pytest.fixture
def pro(reference: Path) -> Path:
    return published(reference, "interns1_pro")


@pytest.fixture
def s1(reference: Path) -> Path:
    return published(reference, "interns1")


@pytest.fixture(params=["interns1", "interns1_pro"])
def either(request: pytest.FixtureRequest, reference: Path) -> Path:
    return published(reference, str(request.param))


def published(reference: Path, name: str) -> Path:
    directory = reference / "tiny" / name
    if not (directory / "ref.safetensors").exists():
        pytest.skip(f"no reference results in {directory}")
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Multimodal:
    """With the routing weights differentiated as they are, like published code."""
    model = load_multimodal(directory, dtype)
    for layer in model.blocks:
        layer.moe.router.gradient = "conventional"
    return model


def images_of(stored: dict[str, Tensor]) -> Images | Tensor:
    if "image_grid_thw" not in stored:
        return stored["pixel_values"]
    return Images(stored["pixel_values"], [(rows, columns) for _, rows, columns in stored["image_grid_thw"].tolist()])


def mean_loss(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), next_tokens(ids).flatten(), ignore_index=IGNORE)


def run(model: Multimodal, ids: Tensor, **media: Any) -> tuple[Tensor, Tensor]:
    """Logits and loss."""
    logits = model.logits(model(ids, **media).hidden)
    return logits, mean_loss(logits, ids)


def stacked(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named in `like`, experts in stacks [E, 2I, H] and [E, H, I] where those are."""
    found = {}
    for name in like:
        at, _, kind = name.rpartition(".")
        if name in tensors:
            found[name] = tensors[name]
            continue
        experts = range(sum(other.startswith(f"{at}.") and other.endswith("down_proj.weight") for other in tensors))
        halves = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        found[name] = torch.stack([torch.cat([tensors[f"{at}.{e}.{half}.weight"] for half in halves]) for e in experts])
    return found


def published_gradients(model: Multimodal) -> dict[str, Tensor]:
    """Gradients under published names; zero where a parameter has none. The model is of no more use."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return dict(published_tensors(model))


def test_logits_and_loss_with_images(either):
    stored, model = load_file(either / "ref.safetensors"), load(either)
    logits, loss = run(model, stored["input_ids"], images=images_of(stored))
    assert relative(logits, stored["logits"]) <= BOUND
    assert (logits - stored["logits"]).abs().max() <= BOUND
    assert relative(loss.view(1), stored["loss"]) <= BOUND
    stored["pixel_values"] = stored["pixel_values"].flip(0)
    assert relative(run(model, stored["input_ids"], images=images_of(stored))[0], stored["logits"]) > 1e-3


def test_logits_loss_and_gradients_of_text_alone(either):
    stored, expected = load_file(either / "ref.safetensors"), load_file(either / "text_grads.safetensors")
    model = load(either)
    logits, loss = run(model, stored["text_input_ids"])
    assert relative(logits, stored["text_logits"]) <= BOUND
    assert relative(loss.view(1), stored["text_loss"]) <= BOUND
    loss.backward()
    assert_close(stacked(published_gradients(model), expected), expected, BOUND)


def test_every_gradient_with_images_is_internvls(s1):
    """transformers computes Intern-S1 as an InternVL around a Qwen3-MoE."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = json.loads((s1 / "config.json").read_text())
    config |= {"model_type": "internvl", "vision_config": config["vision_config"] | {"model_type": "internvl_vision"}}
    theirs = InternVLForConditionalGeneration(InternVLConfig(**config, attn_implementation="eager"))
    ours, stored = load(s1), load_file(s1 / "ref.safetensors")
    tensors = dict(published_tensors(ours))
    theirs.load_state_dict(stacked(tensors, theirs.state_dict()))
    ids, tiles = stored["input_ids"], stored["pixel_values"]
    mean_loss(theirs(input_ids=ids, pixel_values=tiles).logits, ids).backward()
    run(ours, ids, images=tiles)[1].backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert None not in expected.values()
    assert_close(stacked(published_gradients(ours), expected), expected, BOUND)


def test_embeddings_of_a_signal(pro):
    stored, model = load_file(pro / "ref.safetensors"), load(pro)
    assert relative(model.signals([Signal(stored["ts_in"][0], 36.0)]), stored["ts_out"]) <= BOUND


def with_signals(stored: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Ids and media: a signal of 6 tokens in the second row, then one of 1 token, beside the images."""
    ids = stored["input_ids"].clone()
    free = (ids[1] != IMAGE).nonzero().flatten()
    ids[1, free[[3, 4, 6, 7, 8, 11, -2]]] = SIGNAL
    values = stored["ts_in"][0]
    return ids, {"images": images_of(stored), "signals": [Signal(values, 36.0), Signal(values[:5], 1.0)]}


def test_media_are_in_the_places_of_their_tokens(pro):
    """Against embeddings written one by one."""
    stored, model = load_file(pro / "ref.safetensors"), load(pro)
    ids, media = with_signals(stored)
    embeds = model.embed[ids].detach().clone()
    for token, features in ((IMAGE, model.vision(media["images"])), (SIGNAL, model.signals(media["signals"]))):
        places = [(row, column) for row, column in (ids == token).nonzero().tolist()]
        assert len(places) == len(features)
        for place, feature in zip(places, features, strict=True):
            embeds[place] = feature.detach()
    expected = model.logits(model(embeds=embeds).hidden)
    assert torch.equal(run(model, ids, **media)[0], expected)


def test_a_signal_for_a_model_without_that_tower(s1):
    with pytest.raises(ValueError, match="this model has no tower for signals"):
        load(s1)(torch.zeros(1, 4, dtype=torch.int64), signals=[Signal(torch.ones(9, 1), 1.0)])


def test_gradients_with_media_are_differences_of_the_loss(pro):
    """In fp64, along a random direction of each part's parameters: the loss's slope is the gradient's projection."""
    stored, model = load_file(pro / "ref.safetensors"), load(pro, torch.float64)
    ids, media = with_signals(stored)

    def loss() -> Tensor:
        return run(model, ids, **media)[1]

    loss().backward()
    for part in (model.layers, model.vision, model.signals):
        parameters = [parameter for parameter in part.parameters() if parameter.grad is not None]
        generator = torch.Generator().manual_seed(9)
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for p in parameters]
        slope = sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True))
        step, ends = 1e-7, []  # larger ones move ReLUs of the patch encoder across 0
        for sign in (1, -2):
            with torch.no_grad():
                torch._foreach_add_(parameters, direction, alpha=sign * step)
                ends.append(loss())
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=step)
        assert relative((ends[0] - ends[1]) / (2 * step), slope) <= 1e-6


def test_every_gradient_with_media_is_that_of_other_towers(pro):
    """In fp64: transformers' Qwen3-VL and a formula of signals, with the checkpoint's weights, give the embeddings."""
    stored, ours, decoder = load_file(pro / "ref.safetensors"), *(load(pro, torch.float64) for _ in range(2))
    ids, media = with_signals(stored)
    drawn = torch.randn(157, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    recordings = [(drawn[:147], 36.0), (drawn[147:], 1.0)]  # 6 tokens and 1
    scaled = [((x - x.mean(0)) / (x.std(0, correction=0) + 1e-8), rate) for x, rate in recordings]
    images = media["images"]._replace(pixels=media["images"].pixels.double())
    run(ours, ids, images=images, signals=[Signal(*signal) for signal in scaled])[1].backward()

    tensors = dict(published_tensors(decoder))
    vision = qwen3_vl(json.loads((pro / "config.json").read_text())["vision_config"]).double()
    vision.load_state_dict({name: tensors[f"model.visual.{name}"] for name in vision.state_dict()})
    weights = {
        name: tensor.clone().requires_grad_()
        for at, tensor in tensors.items()
        if (name := at.removeprefix("model.time_series.")) != at and not name.endswith("pos_encoder.pe")
    }
    grids = torch.tensor([(1, *grid) for grid in images.grids])
    embeds = decoder.embed[ids]
    embeds[ids == IMAGE] = vision(images.pixels, grids).pooler_output
    embeds[ids == SIGNAL] = torch.cat([signal_formula(weights, *given, heads=4, patch_heads=8) for given in recordings])
    mean_loss(decoder.logits(decoder(embeds=embeds).hidden), ids).backward()

    expected = published_gradients(decoder)
    expected |= {f"model.visual.{name}": parameter.grad for name, parameter in vision.named_parameters()}
    expected |= {f"model.time_series.{name}": weight.grad for name, weight in weights.items()}
    assert all(expected[name].any() for name in tensors if name.startswith(("model.visual.", "model.time_series.")))
    assert_close(published_gradients(ours), expected, BOUND)  # transformers rotates in fp32


def qwen3_vl(config: dict[str, Any]) -> torch.nn.Module:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    fields = config | {"model_type": "qwen3_vl", "deepstack_visual_indexes": []}
    return Qwen3VLVisionModel(Qwen3VLVisionConfig(**fields, attn_implementation="eager"))


def test_every_tensor_is_written_as_it_was_read(either):
    expected = load_file(either / "model.safetensors")
    found = dict(published_tensors(load_multimodal(either)))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("change", [-1, 1])
def test_placeholders_and_embeddings_that_differ_in_number(pro, change):
    stored, model = load_file(pro / "ref.safetensors"), load(pro)
    ids = stored["input_ids"].clone()
    ids[1, 0 if change > 0 else ids[1].eq(IMAGE).nonzero()[0, 0]] = IMAGE if change > 0 else 5
    with pytest.raises(ValueError, match=f"hold {7 + change} image placeholders .300., but .* have 7 embeddings"):
        model(ids, images=images_of(stored))
    with pytest.raises(ValueError, match=f"hold {7 + change} image placeholders .* have 0 embeddings"):
        model(ids)
    with pytest.raises(ValueError, match=r"hold 0 signal placeholders .302., but the signals given have 6 embeddings"):
        model(stored["input_ids"], images=images_of(stored), signals=[Signal(stored["ts_in"][0], 36.0)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_config.hidden_act", "gelu"),
        ("vision_config.deepstack_visual_indexes", [1]),
        ("vision_config.num_heads", 32),
        ("vision_config.num_position_embeddings", 35),
        ("vision_config.out_hidden_size", 32),
        ("vision_config.model_type", "clip"),
        ("image_token_id", None),
        ("image_token_id", 10**7),
        ("ts_token_id", 10**7),
        ("ts_config.model_type", "whisper"),
        ("ts_config.activation_function", "relu"),
        ("ts_config.ts_hidden_dim", 512),
        ("ts_config.ts_adapt_in_dim", 128),
        ("ts_config.encoder_attention_heads", 5),
    ],
)
def test_a_tower_of_another_function_is_refused(tmp_path, pro, key, value):
    assert_refused(pro, tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_config.norm_type", "layer_norm"),
        ("vision_config.use_qk_norm", False),
        ("vision_config.attention_bias", True),
        ("vision_config.num_attention_heads", 5),
        ("vision_config.image_size", [56, 28]),
        ("vision_config.image_size", 42),
        ("projector_hidden_act", "relu"),
        ("vision_feature_layer", -2),
        ("downsample_ratio", 0.4),
    ],
)
def test_an_intern_vit_of_another_function_is_refused(tmp_path, s1, key, value):
    assert_refused(s1, tmp_path, key, value)


def test_a_directory_without_a_vision_tower_is_refused(tmp_path, pro):
    fault = refusal(pro, tmp_path, "vision_config", None)
    assert fault.allowed == ("interns1_vision", "interns1_pro_vision")


def test_placeholders_of_images_and_signals_must_differ(tmp_path, pro):
    token = json.loads((pro / "config.json").read_text())["image_token_id"]
    assert_refused(pro, tmp_path, "ts_token_id", token)


def assert_refused(source: Path, tmp_path: Path, key: str, value: Any) -> None:
    fault = refusal(source, tmp_path, key, value)
    assert key.endswith(fault.where)
    assert fault.value == value
    assert fault.allowed
    assert fault.text.startswith(str(tmp_path))


def refusal(source: Path, tmp_path: Path, key: str, value: Any) -> Fault:
    """With one value of config.json replaced."""
    config = json.loads((source / "config.json").read_text())
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "model.safetensors", tmp_path)
    with pytest.raises(HuggingFaceError) as refused:
        load_multimodal(tmp_path)
    (fault,) = refused.value.faults
    return fault


def test_a_tensor_that_is_missing_or_of_another_shape(tmp_path, pro):
    tensors = load_file(pro / "model.safetensors")
    del tensors["model.visual.merger.norm.bias"]
    tensors["model.visual.patch_embed.proj.weight"] = torch.zeros(64, 96)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(pro / "config.json", tmp_path)
    with pytest.raises(HuggingFaceError) as refused:
        load_multimodal(tmp_path)
    missing, other = refused.value.value
    assert "model.visual.merger.norm.bias" in missing
    assert "model.visual.patch_embed.proj.weight" in other
    assert "[64, 96]" in other
