"""A run that starts from published weights: its first loss, its copy of the source, and sources that are refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import events, steps, tiny_config
from tests.trainer.weights.exports import config, loaded
from trainer.config.keys import Config
from trainer.run import directory as rundir
from trainer.run.process import train
from trainer.weights import kept_source as carried
from trainer.weights.export import export
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import survey_directory


def test_training_starts_with_the_published_loss_and_continues_without_the_source(tmp_path, reference):
    source = shutil.copytree(reference / "tiny" / "interns1", tmp_path / "source")
    described = json.loads((source / "config.json").read_text()) | {"mystery": 1}
    (source / "config.json").write_text(json.dumps(described))
    cfg = config(source, tmp_path / "run", steps=2, every=1, log_every=1)
    assert train(cfg) == 0
    first = steps(tmp_path / "run")[0]["loss"]
    shutil.rmtree(source)
    cfg.train.steps = 3
    assert train(cfg) == 0
    (warning,) = events(tmp_path / "run", "warning")  # of the first start alone
    assert f"{source}/config.json: unknown keys are ignored: mystery;" in warning["message"]
    began, continued = (event["message"] for event in events(tmp_path / "run", "run"))
    assert f"new, with the weights in {source}" in began
    assert "continued after step 2" in continued
    random = tiny_config(tmp_path / "random", steps=1, log_every=1, global_batch=8, micro_batch=8)
    random.model = cfg.model
    assert train(random) == 0
    assert steps(tmp_path / "random")[0]["loss"] != pytest.approx(first, rel=1e-3)
    export(tmp_path / "run", tmp_path / "out")  # what it needs of the source is in the run's directory
    assert len(loaded(tmp_path / "out")) == 214


def test_a_start_that_failed_binds_no_later_one(tmp_path, reference, capsys):
    """Killed after the towers were copied and before the first step: the next start does all of it again."""
    other, run = reference / "tiny" / "interns1_pro", tmp_path / "run"
    rundir.prepare(rundir.RunDir(run, "new"), config(other, run))
    carried._keep(survey_directory(open_directory(other)), run / "source", lambda: None)
    next((run / "source").glob("*.safetensors")).unlink()  # as a removal that was killed leaves it
    assert train(config(reference / "tiny" / "interns1", run)) == 0
    assert {name.split(".")[1] for name in loaded(run / "source")} == {"vision_tower", "multi_modal_projector"}


NOTES = "written by hand"


def of_the_user(source: Path, run: Path) -> tuple[Path, str]:
    (run / "source").mkdir(parents=True)
    (run / "source" / "notes").write_text(NOTES)
    return source, "holds files but no config.yaml"


def of_the_user_beside_a_configuration(source: Path, run: Path) -> tuple[Path, str]:
    rundir.prepare(rundir.RunDir(run, "new"), config(source, run))
    of_the_user(source, run)
    return source, "holds other files; move them away"


def notes_in_what_a_start_left(source: Path, run: Path) -> tuple[Path, str]:
    rundir.prepare(rundir.RunDir(run, "new"), config(source, run))
    carried._keep(survey_directory(open_directory(source)), run / "source", lambda: None)
    (run / "source" / "notes").write_text(NOTES)
    return source, "holds other files; move them away"


def a_link(source: Path, run: Path) -> tuple[Path, str]:
    rundir.prepare(rundir.RunDir(run, "new"), config(source, run))
    carried._keep(survey_directory(open_directory(source)), run.parent / "elsewhere", lambda: None)
    (run / "source").symlink_to(run.parent / "elsewhere")
    return source, "holds other files; move them away"


def the_source_itself(source: Path, run: Path) -> tuple[Path, str]:
    inside = Path(shutil.copytree(source, run / "source"))
    rundir.prepare(rundir.RunDir(run, "new"), config(inside, run))
    return inside, "overlaps"


def a_directory_in_it(source: Path, run: Path) -> tuple[Path, str]:
    inside = Path(shutil.copytree(source, run / "source" / "model"))
    rundir.prepare(rundir.RunDir(run, "new"), config(inside, run))
    return inside, "overlaps"


def a_directory_around_it(source: Path, run: Path) -> tuple[Path, str]:
    shutil.copytree(source, run.parent, dirs_exist_ok=True)
    return run.parent, "overlaps"


@pytest.mark.parametrize(
    "put",
    [of_the_user, of_the_user_beside_a_configuration, notes_in_what_a_start_left, a_link, the_source_itself,
     a_directory_in_it, a_directory_around_it],
)  # fmt: skip
def test_nothing_of_the_users_is_removed(tmp_path, reference, capsys, put):
    run = tmp_path / "at" / "run"
    source, said = put(reference / "tiny" / "interns1", run)
    cfg = config(source, run)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert train(cfg) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def killed_while_it_copies(source: Path, run: Path) -> None:
    if (child := os.fork()) == 0:
        try:
            (run / "source").rename(run / "kept")
            carried._keep(survey_directory(open_directory(source)), run / "source", lambda: os._exit(9))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (run / "kept").rename(run / "source")
    assert list(run.glob("source.*.octavo.tmp"))


def test_a_start_with_random_weights_has_no_part_of_an_earlier_ones_source(tmp_path, reference):
    """Not even where that source is of the same model, and neither where the user put a directory there."""
    published, run = reference / "tiny" / "interns1", tmp_path / "run"
    cfg = config(published, run)
    rundir.prepare(rundir.RunDir(run, "new"), cfg)
    carried._keep(survey_directory(open_directory(published)), run / "source", lambda: None)
    killed_while_it_copies(published, run)
    cfg.checkpoint.init_from = None
    assert train(cfg) == 0
    assert not list(run.glob("source*"))
    carried._keep(survey_directory(open_directory(published)), run / "source", lambda: None)
    done = export(run, tmp_path / "out")
    assert (done.carried, done.dtypes) == (0, "BF16")
    assert "vision_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    (run / "source" / "notes").write_text(NOTES)
    cfg.train.resume, cfg.train.steps = "auto", 2
    assert train(cfg) == 0
    assert (run / "source" / "notes").read_text() == NOTES


def other_model(cfg: Config, source: Path) -> str:
    cfg.model = replace(cfg.model, hidden_size=32, rope_theta=1e4)
    return (
        "is a different model: model.hidden_size is 32 in this run but 64 in the checkpoint; model.rope_theta is "
        "10000.0 in this run but 1000000.0 in the checkpoint"
    )


def nowhere(cfg: Config, source: Path) -> str:
    cfg.checkpoint.init_from = "nowhere"
    return f"checkpoint.init_from={cfg.checkpoint.init_from} does not exist on this machine"


def missing_tower(cfg: Config, source: Path) -> str:
    return rewrite(source, "model.multi_modal_projector.linear_1.bias", None) + "no tensor model.multi_modal_projector"


def unfit_tower(cfg: Config, source: Path) -> str:
    name = "model.vision_tower.embeddings.cls_token"
    rewrite(source, name, torch.zeros(1, 1, 47))
    return f"{name}: the checkpoint has shape [1, 1, 47]; expected [1, 1, 48]"


def unknown_in_a_tower(cfg: Config, source: Path) -> str:
    rewrite(source, "model.vision_tower.extra", torch.zeros(1))
    return "model.vision_tower.extra: unknown tensor"


def fp8_tower(cfg: Config, source: Path) -> str:
    name = "model.multi_modal_projector.linear_2.weight"
    rewrite(source, name, torch.zeros(64, 64).to(torch.float8_e4m3fn))
    return f"{name}: F8_E4M3 in a tower"


def truncated(cfg: Config, source: Path) -> str:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return f"{file}: truncated or damaged"


def rewrite(source: Path, name: str, tensor: Tensor | None) -> str:
    tensors = load_file(source / "model.safetensors") | {name: tensor}
    save_file({key: value for key, value in tensors.items() if value is not None}, source / "model.safetensors")
    return ""


@pytest.mark.parametrize(
    "damage", [other_model, nowhere, truncated, missing_tower, unfit_tower, unknown_in_a_tower, fp8_tower]
)
def test_a_source_that_will_not_do_is_one_line_before_anything_is_built(
    tmp_path, reference, capsys, monkeypatch, damage
):
    source = tmp_path / "source"
    source.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(reference / "tiny" / "interns1" / file, source / file)
    cfg = config(source, tmp_path / "run")
    said = damage(cfg, source)
    monkeypatch.setattr("trainer.run.build.build_data", lambda *_, **__: pytest.fail("data were built"))
    assert train(cfg) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "source").exists()


def test_a_weight_that_is_not_finite_is_named_before_the_first_step(tmp_path, reference, capsys):
    source = shutil.copytree(reference / "tiny" / "interns1", tmp_path / "source")
    name = "model.language_model.layers.1.mlp.experts.13.up_proj.weight"
    weight = load_file(source / "model.safetensors")[name]
    weight[0, 0] = float("inf")
    rewrite(source, name, weight)
    assert train(config(source, tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert f"{source}/model.safetensors: {name} has NaN or infinite values" in err
    assert err.count("\n") == 1


def test_ranks_end_alike(tmp_path, reference):
    """Rank 0 alone looks at the source before the others read it."""
    for number, source in enumerate(("nowhere", str(reference / "tiny" / "interns1"))):
        cfg = tiny_config(tmp_path / str(number))
        cfg.checkpoint.init_from = source
        assert on_ranks(2, train, cfg) == [2, 2]
