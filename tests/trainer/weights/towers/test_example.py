"""The example of docs/multimodal.md, run as it is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parents[4] / "docs" / "multimodal.md"


def test_the_example_computes_logits(tmp_path, monkeypatch, reference: Path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, which transformers' processors use")
    source = reference / "tiny" / "interns1_pro"
    if not (source / "model.safetensors").exists():
        pytest.skip(f"no reference checkpoint in {source}")
    directory = tmp_path / "Intern-S1-Pro"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, directory)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 4096}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    image.linear_gradient("L").resize((40, 21)).save(tmp_path / "figure.png")
    monkeypatch.chdir(tmp_path)

    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    assert names["grids"] == [(6, 10)]  # 21 x 40 pixels to multiples of 8
    assert (names["image_tokens"], names["signal_tokens"]) == (15, 10)
    assert names["logits"].shape == (1, 28, 320)
    assert names["logits"].isfinite().all()
    swapped = names["images"]._replace(pixels=-names["images"].pixels)
    with torch.no_grad():
        again = names["model"](torch.tensor([names["ids"]]), images=swapped, signals=[names["signal"]]).hidden
    assert not torch.equal(names["hidden"], again)
