"""`octavo inspect`, `export`, `runs` and `data` on runs with towers, and on image-text pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from tests.printed import error_line
from tests.trainer.data.pairs.made import write_source
from tests.trainer.tiny_run import events
from trainer.config.compose import compose
from trainer.run.process import train

pytest.importorskip("PIL", reason="needs Pillow: pip install -e '.[media]'")

COMMON_SPACE = {"image_projection", "text_projection", "log_scale", "bias"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A contrastive run of one step."""
    root = tmp_path_factory.mktemp("pairs")
    words = [f"data.cache_dir={root}/cache", f"run.dir={root}/run", "train.device=cpu", "logging.console=off"]
    words += ["train.steps=1", "train.global_batch=16", "train.micro_batch=16", "train.eval_batches=1"]
    assert train(compose(["recipe=vision_contrastive_toy", *words, "optim.parts.merger.freeze=true"])) == 0
    return root / "run"


def test_inspect_knows_the_tensors_of_a_contrastive_run(pairs, tmp_path, capsys):
    assert main(["inspect", str(pairs)]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert rows["common"][:2] == ["space", "4"]
    assert rows["unknown"] == rows["missing"] == ["none"]
    copy = shutil.copytree(pairs, tmp_path / "copy")
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    tree["model"]["embedding"]["width"] += 8
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["inspect", str(copy)]) == 1
    assert "model.image_projection" in capsys.readouterr().out


def test_export_names_what_it_writes_and_what_it_leaves_out(pairs, tmp_path, capsys):
    assert main(["export", str(pairs), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "text model and vision tower" in shown.out
    (line,) = [line for line in shown.err.splitlines() if "left out" in line]
    assert all(name in line for name in COMMON_SPACE)
    assert main(["export", str(pairs), str(tmp_path / "text"), "--text-only"]) == 0
    shown = capsys.readouterr()
    assert "vision tower" not in shown.out
    assert "--text-only" in shown.err


def test_the_first_lines_of_a_run_name_its_towers_and_frozen_parts(pairs):
    (run,), (precision,) = events(pairs, "run"), events(pairs, "precision")
    assert "vision tower" in run["message"]
    assert "signal" not in run["message"] + precision["message"]
    assert "frozen: merger" in run["message"]
    assert "vision" in precision["message"]


def test_an_error_of_a_directory_of_pairs_names_its_key(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = ["recipe=vision_contrastive", f"data.root={tmp_path}", "data.tokenizer=nowhere"]
    words += ["data.pairs.cc12m.path=empty", "train.device=cpu"]
    assert main(["data", "index", *words]) == 1
    error_line(capsys.readouterr().err, "data.pairs.cc12m.path", tmp_path / "empty")
    assert main(["data", "check", *words]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert any("data.pairs.sbu.path" in line for line in printed)
    cfg = compose([*words, "logging.console=off", f"run.dir={tmp_path}/run", "train.global_batch=8",
                   "train.micro_batch=8", *TINY])  # fmt: skip
    assert train(cfg) == 2
    error_line(capsys.readouterr().err, "data.tokenizer", "nowhere")


TINY = ["model=vision_toy", "data.seq_len=32", "data.zero_shot={}"]


def test_one_index_is_named_in_the_singular(tmp_path, capsys):
    write_source(tmp_path / "one", 8)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(
        f"name: pairs\ntokenizer: t\nroot: {tmp_path}\npairs: {{one: {{path: one, pairs: 8}}}}\n"
    )
    words = ["vision_contrastive", "data=mine", "--config-dir", str(tmp_path)]
    assert main(["data", "index", *words]) == 0
    capsys.readouterr()
    assert main(["data", "check", *words]) == 0
    assert "1 index is intact" in capsys.readouterr().out
