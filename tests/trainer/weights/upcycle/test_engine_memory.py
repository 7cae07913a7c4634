"""Memory of an upcycle of the published sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainer.storage.manifest import CHECKPOINT
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import INDEX
from trainer.weights.hf_write import OutputTensor
from trainer.weights.map import MULTIMODAL, PLAIN, full_name, text_pieces

# Qwen3-235B-A22B's, with one layer of 16 experts.
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
    "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 16, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536, "rope_theta": 1e6, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "norm_topk_prob": True, "tie_word_embeddings": False,
}  # fmt: skip

BLOCK = 4_000_037  # numbers: no multiple of a row, so that no two experts are alike
WORKERS = 2
# A child's ru_maxrss starts at its parent's; the process that measures has imported next to nothing. What a
# child has waited for counts as its own, so the figure is that of the largest of all.
MEASURED = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def distance(source: Path, target: Path) -> float:
    """Ratio of an expert's copy to its original."""
    expert = CHECKPOINT.read(target)["upcycle"]["placement"]["layers"][0][0].split()[0]
    name = "layers.0.mlp.experts.{}.up_proj.weight"
    old, new = PLAIN + name.format(expert), MULTIMODAL + name.format(0)
    file = target / json.loads((target / INDEX).read_text())["weight_map"][new]
    with safe_open(source / "model.safetensors", "pt") as before, safe_open(file, "pt") as after:
        was, now = before.get_tensor(old).float(), after.get_tensor(new).float()
    return float((now - was).norm() / was.norm())


@pytest.mark.slow
def test_peak_memory_of_the_published_sizes(tmp_path: Path) -> None:
    """Slow: it writes 8 GB and hashes 5. The source is one block of normal numbers again and again: noise on zeros
    would be no arithmetic at all."""
    if shutil.disk_usage(tmp_path).free < 10e9:
        pytest.skip("10 GB of disk needed")
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    pieces = text_pieces(model_config_from_huggingface(CONFIG))
    outputs = [OutputTensor(full_name(PLAIN, piece), "BF16", piece.shape) for piece in pieces]
    header: dict[str, object] = {}
    end = 0
    for output in outputs:
        header[output.name] = {"dtype": "BF16", "shape": output.shape, "data_offsets": [end, end + output.nbytes]}
        end += output.nbytes
    text = json.dumps(header).encode()
    with open(source / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16().view(torch.uint8).numpy()
        for start in range(0, end, block.nbytes):
            file.write(block[: end - start])
    command = [sys.executable, "-m", "launch.cli", "upcycle", str(source), str(tmp_path / "dst")]
    command += ["--workers", str(WORKERS)]
    measured = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, stdout=subprocess.PIPE, text=True)
    code, kilobytes = json.loads(measured.stdout)
    print(f"\n{WORKERS} workers: at most {kilobytes / 1e6:.2f} GB in one process")
    written = sum(file.stat().st_size for file in (tmp_path / "dst").iterdir())
    relative = distance(source, tmp_path / "dst") if code == 0 else None
    shutil.rmtree(tmp_path)
    assert code == 0
    assert written > 4.9e9
    assert relative == pytest.approx(1e-2, rel=0.05)
    assert kilobytes * 1024 * (WORKERS + 1) < 3e9
