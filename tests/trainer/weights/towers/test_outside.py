"""Trained checkpoints with towers, made on the command line: `octavo train` from published weights, a resume at another
layout, `octavo export`; then code of others reads the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.model.tiny import relative
from tests.trainer.weights.exports import in_bf16, loaded
from tests.trainer.weights.towers.outside import BOUND, assert_others_compute_the_same, grids_of, pro_logits
from trainer.weights.towers.names import tower_of

CHECKOUT = Path(__file__).resolve().parents[4]
UNTRAINED = "model.vision_tower.embeddings.mask_token"  # that published files of Intern-S1 may hold
TRAIN = [
    "recipe=toy", "data=synthetic", "data.seq_len=64", "train.micro_batch=4", "train.global_batch=8",
    "train.eval_batches=1", "optim.lr=1e-2", "optim.warmup_steps=0", "optim.parts.router.freeze=true",
    "logging.console=plain",
]  # fmt: skip
# Model -> its recipe, what is frozen, and the layouts of the two starts.
CASES = {
    "interns1": ("intern_s1", ["optim.parts.vision.freeze=true"], ["parallel.pp=2"], ["parallel.dp_shard=2"]),
    "interns1_pro": ("intern_s1_pro", [], ["parallel.cp=2", "parallel.cp_kind=ring"], ["parallel.pp=2"]),
}


def test_the_reader_of_pro_gives_the_published_logits(reference):
    directory = reference / "tiny" / "interns1_pro"
    stored = load_file(directory / "ref.safetensors")
    found = pro_logits(directory, stored["input_ids"], stored["pixel_values"], grids_of(stored))
    assert relative(found, stored["logits"]) <= BOUND
    assert (found - stored["logits"]).abs().max() <= BOUND


def octavo(*words: str) -> str:
    """Run a command, and return the text that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launch.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_that_was_trained_resumed_and_exported_is_read_by_others(tmp_path, reference, name):
    recipe, frozen, first, second = CASES[name]
    published, source = reference / "tiny" / name, in_bf16(reference / "tiny" / name, tmp_path / "source")
    if name == "interns1":
        more = load_file(source / "model.safetensors") | {UNTRAINED: torch.full((1, 1, 48), 0.1, dtype=torch.bfloat16)}
        save_file(more, source / "model.safetensors")
    before = loaded(source)
    words = re.findall(r"model\.\S+=\S+", octavo("inspect", str(source)))
    run, out = str(tmp_path / "run"), tmp_path / "out"
    train = ["train", "--nproc-per-node", "2", *TRAIN, f"model={recipe}", *words, f"checkpoint.init_from={source}"]
    octavo(*train, *frozen, *first, "train.steps=2", f"run.dir={run}")
    shutil.rmtree(source)  # from here on the run has all that it needs
    octavo(*train, *frozen, *second, "train.steps=4", f"run.dir={run}")
    octavo("export", run, str(out))

    after = loaded(out)
    assert {key: (t.dtype, t.shape) for key, t in after.items()} == {k: (t.dtype, t.shape) for k, t in before.items()}
    untouched = {key for key, tensor in after.items() if same_bytes(tensor, before[key])}
    tables = {key for key in after if "rotary_emb" in key or key.endswith("pos_encoder.pe")}
    routers = {key for key in after if key.endswith("mlp.gate.weight")}
    vision = {key for key in after if tower_of(key) == "vision"} if frozen else set()
    assert untouched == tables | routers | vision
    assert (UNTRAINED in untouched) == (name == "interns1")
    (described, theirs) = (json.loads((at / "config.json").read_text()) for at in (out, published))
    assert described["vision_config"] == theirs["vision_config"]

    assert_others_compute_the_same(out, load_file(published / "ref.safetensors"))


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
