"""The documented Python entry: a configuration, a tiny run, its export and an expansion of that, and a corpus."""

import subprocess
import sys

import numpy as np
import pytest

from parallel.errors import UserError
from tests.trainer.corpora.tokenize.tokenized import save_tokenizer, texts, write_jsonl
from tests.trainer.tiny_run import MODEL, steps
from trainer import api
from trainer.config.errors import ConfigError
from trainer.data.shards.windows import Shards
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import survey_directory
from trainer.weights.upcycle.coactivation import Counts, model_digest

TINY = [
    "recipe=toy", "data=synthetic", "data.seq_len=16", "train.steps=2", "train.global_batch=2", "train.micro_batch=2",
    "train.sample_tokens=0", "train.device=cpu", "logging.console=off", "model.max_position=64",
    *(f"model.{key}={value}" for key, value in (MODEL | {"positions": "rope", "router_groups": 1}).items()),
]  # fmt: skip


def test_a_tiny_run_is_trained_exported_and_expanded(tmp_path):
    cfg = api.compose(*TINY, f"run.dir={tmp_path / 'run'}")
    assert api.train(cfg) == tmp_path / "run"
    assert [record["step"] for record in steps(tmp_path / "run")][-1] == 2
    assert api.train(cfg) == tmp_path / "run"  # finished: left alone
    with pytest.raises(UserError) as caught:
        api.export(tmp_path / "run", tmp_path / "exported", dtype="fp9")
    assert (caught.value.where, caught.value.value) == ("--dtype", "fp9")
    assert caught.value.allowed == ("source", "bf16", "fp32", "fp8")
    assert not (tmp_path / "exported").exists()
    done = api.export(tmp_path / "run", tmp_path / "exported", dtype="fp32")
    assert (done.step, done.dtypes) == (2, "F32")
    with pytest.raises(UserError) as caught:
        api.upcycle(tmp_path / "exported", tmp_path / "expanded", factor=2, groups=4, dtype="fp9")
    assert (caught.value.where, caught.value.value) == ("--dtype", "fp9")
    assert not (tmp_path / "expanded").exists()
    made = api.upcycle(tmp_path / "exported", tmp_path / "expanded", factor=2, groups=4)
    assert made.nbytes > done.nbytes
    assert survey_directory(open_directory(tmp_path / "expanded")).model.num_experts == 2 * MODEL["num_experts"]

    source = survey_directory(open_directory(tmp_path / "exported"))
    layers, experts = source.model.num_layers, source.model.num_experts
    pairs = np.ones((layers, experts, experts), np.int64)
    Counts(pairs.sum(1), pairs, 1, model_digest(source)).save(tmp_path / "counts.npz")
    cut = {"factor": 2, "groups": 4, "strategy": "coactivation", "counts": tmp_path / "counts.npz"}
    assert api.upcycle(tmp_path / "exported", tmp_path / "cut", **cut).nbytes == made.nbytes


def test_mistakes_are_faults_with_fields(tmp_path):
    with pytest.raises(ConfigError) as caught:
        api.compose(*TINY, "parallel.ep=3")
    assert (caught.value.where, caught.value.value) == ("parallel.ep", 3)
    with pytest.raises(ConfigError) as caught:
        api.compose(*TINY, world_size=0)
    assert (caught.value.where, caught.value.value) == ("WORLD_SIZE", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        api.train(api.compose(*TINY, f"run.dir={tmp_path}"))
    assert caught.value.where == "run.dir"


def test_documents_become_shards(tmp_path):
    inside, notes = tmp_path / "inside", []
    inside.mkdir()
    (inside / "b.txt").write_text("not read")
    write_jsonl(inside / "a.jsonl", texts())
    how = {"domain": "general", "workers": 0, "note": notes.append}
    manifest = api.tokenize([inside], save_tokenizer(tmp_path), tmp_path / "notes", **how)
    assert (manifest["name"], Shards(tmp_path / "notes").num_tokens) == ("notes", manifest["tokens"])
    assert [str(inside / "b.txt") in note for note in notes] == [True]
    with pytest.raises(UserError) as caught:
        api.tokenize([inside], save_tokenizer(tmp_path), tmp_path / "more", split="test", **how)
    assert (caught.value.where, caught.value.value) == ("--split", "test")


def test_importing_it_imports_no_torch():
    program = "import sys; from trainer import api; print(*{'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
