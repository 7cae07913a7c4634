"""The published serving file of the time-series tower, and what it computes.

    python -m tests.trainer.model.towers.serving fetch      the wheel of lmdeploy 0.18.0 (107 MB) into .cache
    python -m tests.trainer.model.towers.serving store      its results into serving.json, beside this file

One file is loaded by its path in the wheel, with stubs around it: torch's linear and layer norm for the engine's, and
transformers' layer of Whisper for its copy of that. Its patches are encoded some at a time; it would need 20 GB for the
longest case.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.trainer.model.towers.published import published_tensors, randomise
from trainer.config.model import TimeSeriesConfig
from trainer.model.towers.signal_patches import patch_count
from trainer.model.towers.time_series import Signal, TimeSeriesTower, prepare_signal

CACHE = Path(__file__).resolve().parents[4] / ".cache"
STORED = Path(__file__).with_name("serving.json")
FILE = "lmdeploy/pytorch/models/interns1_pro_time_series.py"
VERSION = "0.18.0"
CASES = {
    "1000 steps": (1000, 3, 100), "147 steps": (147, 3, 36), "10 steps": (10, 1, 1), "16 kHz": (16_000, 1, 16_000),
    "240001 steps": (240_001, 2, 500),
}  # fmt: skip
# The file fixes the patch encoder and the bins; of the longest cases not all tokens have a position.
SIZES: dict[str, Any] = {
    "bins": 80, "width": 48, "num_layers": 2, "num_heads": 3, "mlp_width": 40, "positions": 64, "adapt_width": 22,
    "out_width": 26,
}  # fmt: skip
GRADIENTS = "147 steps"  # the case whose gradients are stored too
PATCHES_AT_A_TIME = 64
KEPT = 24  # numbers of each case in the file, evenly spread
KEPT_OF_GRADIENT = 6


def wheel() -> Path | None:
    return next(iter(CACHE.glob(f"lmdeploy-{VERSION}-*.whl")), None)


def tower() -> TimeSeriesTower:
    from tests.trainer.model.towers.signal_formula import sines

    model = TimeSeriesTower(TimeSeriesConfig(**SIZES))
    randomise(model, std=0.1)
    model.patches.positions.copy_(sines(20_000, 128)[:, None])
    return model


def recording(steps: int, channels: int) -> Tensor:
    """Neither centred nor scaled, and made without a random generator: [steps, channels]."""
    step = torch.arange(steps, dtype=torch.float64)[:, None]
    channel = torch.arange(1, channels + 1)
    return (
        3 + channel * (torch.sin(step * channel / 7) + 0.5 * torch.cos(step.square() * 0.013 + channel)) + step / steps
    )


def published_model(ours: TimeSeriesTower) -> nn.Module:
    """The serving file's tower with the weights of ours."""
    found = wheel()
    assert found is not None
    module = _load(zipfile.ZipFile(found).read(FILE).decode(), str(found / FILE))
    config = module.whisper.config(
        d_model=SIZES["width"], num_mel_bins=SIZES["bins"], encoder_layers=SIZES["num_layers"],
        encoder_attention_heads=SIZES["num_heads"], encoder_ffn_dim=SIZES["mlp_width"],
        max_source_positions=SIZES["positions"], activation_function="gelu", ts_adapt_in_dim=256,
        ts_adapt_out_dim=SIZES["adapt_width"], ts_hidden_dim=SIZES["adapt_width"], out_hidden_size=SIZES["out_width"],
    )  # fmt: skip
    built: nn.Module = module.InternS1ProTimeSeriesModel(config, dtype=torch.float32)
    stored = published_tensors(ours, "signals")
    built.load_state_dict({name.removeprefix("model.time_series."): tensor for name, tensor in stored.items()})
    built.eval()
    encode = built.encoder_embed.forward_encoder
    built.encoder_embed.forward_encoder = lambda x: torch.cat([encode(part) for part in x.split(PATCHES_AT_A_TIME)])
    mask = built.encoder._make_causal_mask  # it fails on fp64
    built.encoder._make_causal_mask = lambda shape, dtype, **rest: mask(shape, torch.float32, **rest).to(dtype)
    return built


def published_result(model: nn.Module, signal: Signal) -> Tensor:
    """[tokens, H]."""
    rate, steps = torch.tensor([signal.rate]), torch.tensor([len(signal.values)])
    return model(time_series_signals=[signal.values], ts_lens=steps, sr=rate)[0]


def published_gradients(model: nn.Module, signal: Signal) -> dict[str, Tensor]:
    """Gradients of all parameters in fp64, under published names: sums in another order are 1.4e-5 apart in fp32."""
    result = published_result(model.double(), signal._replace(values=signal.values.double()))
    result.backward(upstream(result))
    return {f"model.time_series.{name}": parameter.grad for name, parameter in model.named_parameters()}


def upstream(result: Tensor) -> Tensor:
    """A gradient of the result, made without a random generator."""
    return torch.arange(result.numel(), dtype=result.dtype).square().mul(0.37).cos().view(result.shape)


def spread(result: Tensor, kept: int = KEPT) -> list[float]:
    flat = result.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, kept).long()].tolist()


def summary(gradient: Tensor) -> list[float]:
    """The norm, a sum that depends on the order, and some of the values."""
    ordered = (gradient * upstream(gradient)).sum()
    return [float(gradient.norm()), float(ordered), *spread(gradient, KEPT_OF_GRADIENT)]


def _load(text: str, path: str) -> ModuleType:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    def linear(in_features: int, out_features: int, bias: bool, dtype: Any, device: Any) -> nn.Linear:
        return nn.Linear(in_features, out_features, bias, dtype=dtype, device=device)

    def config(**fields: Any) -> WhisperConfig:
        found = WhisperConfig(**fields, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
        found._attn_implementation = "eager"
        return found

    class Layer(WhisperEncoderLayer):
        def __init__(self, config: WhisperConfig, dtype: Any, device: Any) -> None:
            super().__init__(config)

        def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
            found = super().forward(hidden_states, attention_mask)
            return found if isinstance(found, Tensor) else found[0]

    stubs = {
        "lmdeploy": {}, "lmdeploy.pytorch": {}, "lmdeploy.pytorch.nn": {"LayerNorm": nn.LayerNorm},
        "lmdeploy.pytorch.nn.linear": {"build_colwise_linear": linear, "build_rowwise_linear": linear},
        "lmdeploy.pytorch.models": {},
        "lmdeploy.pytorch.models.whisper": {"WhisperEncoderLayer": Layer, "config": config},
    }  # fmt: skip
    before = dict(sys.modules)
    try:
        for name, contents in stubs.items():
            sys.modules[name] = stub = ModuleType(name)
            stub.__dict__.update(contents, __path__=[])
        spec = importlib.util.spec_from_loader("lmdeploy.pytorch.models.time_series", loader=None, origin=path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__package__ = "lmdeploy.pytorch.models"
        exec(compile(text, path, "exec"), module.__dict__)
        module.whisper = sys.modules["lmdeploy.pytorch.models.whisper"]
        return module
    finally:
        for name in stubs:
            sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]


def store() -> None:
    ours = tower()
    theirs = published_model(ours)
    found: dict[str, Any] = {"lmdeploy": VERSION, "torch": torch.__version__, "cases": {}}
    store_results(ours, theirs, found)
    steps, channels, rate = CASES[GRADIENTS]
    gradients = published_gradients(theirs, prepare_signal(recording(steps, channels), rate))
    found["gradients"] = {name: summary(gradient) for name, gradient in gradients.items()}
    STORED.write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def store_results(ours: TimeSeriesTower, theirs: nn.Module, found: dict[str, Any]) -> None:
    for name, (steps, channels, rate) in CASES.items():
        signal = prepare_signal(recording(steps, channels), rate)
        expected = published_result(theirs, signal)
        result = ours([signal])
        error = float((result - expected).norm() / expected.norm())
        found["cases"][name] = {"shape": list(expected.shape), "values": spread(expected), "error": error}
        patches = patch_count(len(signal.values), rate)
        print(f"{name}: {patches} patches, {len(expected)} tokens, relative error {error:.1e}")


def main() -> None:
    if sys.argv[1:] == ["fetch"]:
        CACHE.mkdir(exist_ok=True)
        download = ["download", "--no-deps", "-d", str(CACHE), f"lmdeploy=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
    elif sys.argv[1:] == ["store"]:
        store()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
