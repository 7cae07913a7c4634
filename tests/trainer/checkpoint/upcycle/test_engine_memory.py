"""What an upcycle of the published sizes takes of memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.checkpoint.huggingface.config import model_config_from_huggingface
from trainer.checkpoint.huggingface.names import PLAIN, full_name, text_pieces
from trainer.checkpoint.huggingface.write import Output

# Qwen3-235B-A22B's, with one layer of 16 experts.
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
    "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 16, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536, "rope_theta": 1e6, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip

WORKERS = 2
# A child's ru_maxrss begins at its parent's; the process that measures has imported next to nothing. What a
# child has waited for counts as its own, so the figure is that of the largest of all.
MEASURED = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(json.dumps([code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


@pytest.mark.slow
def test_peak_memory_of_the_published_sizes(tmp_path: Path) -> None:
    """Slow: it writes and hashes 5 GB. The source is a sparse file of zeros but for its header."""
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("8 GB of disk needed")
    source = tmp_path / "src"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    pieces = text_pieces(model_config_from_huggingface(CONFIG))
    outputs = [Output(full_name(PLAIN, piece), "BF16", piece.shape) for piece in pieces]
    header: dict[str, object] = {}
    end = 0
    for output in outputs:
        header[output.name] = {"dtype": "BF16", "shape": output.shape, "data_offsets": [end, end + output.nbytes]}
        end += output.nbytes
    text = json.dumps(header).encode()
    with open(source / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    command = [sys.executable, "-m", "launch.cli", "upcycle", str(source), str(tmp_path / "dst")]
    command += ["--workers", str(WORKERS)]
    measured = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, stdout=subprocess.PIPE, text=True)
    code, kilobytes = json.loads(measured.stdout)
    print(f"\n{WORKERS} workers: at most {kilobytes / 1e6:.2f} GB in one process")
    written = sum(file.stat().st_size for file in (tmp_path / "dst").iterdir())
    shutil.rmtree(tmp_path)
    assert code == 0
    assert written > 4.9e9
    assert kilobytes * 1024 * (WORKERS + 1) < 3e9
