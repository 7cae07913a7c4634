"""`recipe=toy_gpu`: its bytes, as its comments give them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bench.gpu import end_to_end
from tests.trainer.model.tiny import summed_loss
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.model.decoder import Decoder


def test_the_model_fills_an_80_gb_gpu():
    cfg = compose([end_to_end.RECIPE])
    held = end_to_end.memory(cfg)
    assert held["masters"] + held["moments"] + held["gradients"] == 16 * cfg.model.num_params()
    # An H100 has 85.0 GB of 10^9; what is not counted is a few.
    assert 0.8 * 85e9 < sum(held.values()) < 0.9 * 85e9
    assert cfg.train.global_batch > cfg.train.micro_batch, "quantised weights have no micro-batch to be kept for"
    text = Path("recipes/recipe/toy_gpu.yaml").read_text()
    for part in ("masters", "moments", "gradients"):
        assert f"{part} {held[part] / 1e9:.1f}" in text.replace("fp32 ", "")
    kept, weights = held["bf16 weights"] + held["activations"], held["bf16 weights"]
    assert f"keeps {kept / 1e9:.0f} for backward: {weights / 1e9:.0f} are bf16 copies of the weights" in text


@pytest.mark.parametrize(("layers", "seq_len", "width"), [(1, 64, 64), (2, 128, 64), (2, 64, 32)])
def test_what_a_micro_batch_keeps_is_what_autograd_saves(layers, seq_len, width):
    sizes = [
        "model.vocab_size=512", "model.hidden_size=128", f"model.num_layers={layers}", "model.num_heads=4",
        "model.num_kv_heads=2", "model.head_dim=32", "model.num_experts=16", f"model.expert_width={width}",
        f"data.seq_len={seq_len}",
    ]  # fmt: skip
    cfg = compose([end_to_end.RECIPE, *sizes])
    model = Decoder(cfg.model, torch.bfloat16)
    model.init_weights(0)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 512, (cfg.train.micro_batch, seq_len))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = summed_loss(model, ids, ids)  # noqa: F841  (its graph keeps what was saved)
    expected = end_to_end.memory(cfg)
    assert sum(kept.values()) == pytest.approx(expected["bf16 weights"] + expected["activations"], rel=0.04)


def test_bf16_moments_take_half(tmp_path):
    cfg: Config = compose([end_to_end.RECIPE, "precision.moments=bf16"])
    assert end_to_end.memory(cfg)["moments"] == 4 * cfg.model.num_params()
