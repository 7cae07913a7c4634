"""`octavo train --dry-run`: what a command would do, without doing any of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from trainer.config.checks.optim import doubtful
from trainer.config.compose import compose, to_yaml
from trainer.config.memory import rank_memory
from trainer.run.directory import hold

WORDS = ["train", "recipe=toy", "data=synthetic", "run.dir=run"]


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Runs a dry run in an empty directory; returns name -> text of its lines, and what it warned of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.commands.train._torchrun", lambda *_: 1 / 0)
    monkeypatch.setattr("launch.commands.train.GPU_DEVICES", ())
    monkeypatch.setattr("launch.commands.train.host.memory", lambda: 16 * 10**9)

    def run(*words: str, data: str = "synthetic") -> tuple[dict[str, str], str]:
        before = snapshot(tmp_path)
        assert main([*WORDS[:2], f"data={data}", WORDS[3], *words, "--dry-run"]) == 0
        assert snapshot(tmp_path) == before, "a dry run writes nothing"
        out, err = capsys.readouterr()
        return {line[:14].strip(): line[14:] for line in out.splitlines()}, err

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def save(step: int, *words: str) -> None:
    folder = Path("run", "checkpoints", f"step-{step}")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    Path("run", "config.yaml").write_text(to_yaml(compose([*WORDS[1:], *words])))


def test_the_numbers_of_the_toy(plan):
    found, err = plan()
    assert err == ""
    assert found["parameters"].split()[0] == "15,534,848,"
    assert found["tokens"].startswith("614,400:")
    assert found["memory"].startswith("248.6 MB")
    assert (found["weights"], found["gradients"], found["optimizer"]) == ("62.1 MB", "62.1 MB", "124.3 MB")
    assert found["checkpoints"].startswith("186.4 MB")
    assert (found["directory"], found["would"]) == ("run", "start a new run")


def test_the_arithmetic_of_a_step(plan):
    cfg = compose([*WORDS[1:], "optim=muon"])
    tokens, model = cfg.train.global_batch * cfg.data.seq_len, cfg.model.flops_per_token(cfg.data.seq_len)
    iterations = cfg.model.newton_schulz_flops(5)
    assert float(plan()[0]["arithmetic"].split()[0]) == pytest.approx(tokens * model, rel=5e-3)
    words = plan("optim=muon")[0]["arithmetic"].replace(",", "").replace("%", "").split()
    numbers = [float(word) for word in words if word[0].isdigit()]
    expected = [tokens * model, iterations, 100 * iterations / (tokens * model)]
    assert numbers == pytest.approx(expected, rel=5e-3)


def test_a_run_that_would_resume_or_is_finished_or_in_use(plan):
    save(100)
    assert plan()[0]["would"].startswith("resume after step 100: 200 steps")
    assert plan("train.steps=100")[0]["would"].startswith("do nothing: step 100")
    assert plan("train.resume=never")[0]["directory"] == "run-2"
    with hold(Path("run")):
        assert str(os.getpid()) in plan()[0]["would"]


def test_a_directory_of_another_configuration_is_refused_as_in_train(plan, capsys):
    save(100)
    assert main([*WORDS, "optim.lr=1", "--dry-run"]) == 2
    assert "optim.lr" in capsys.readouterr().err


def test_what_train_would_warn_of_and_refuse(plan):
    found, err = plan("optim.warmup_steps=1000", "parallel.overlap=2", "model.num_layers=100000000")
    assert "optim.warmup_steps=1000" in err
    assert "parallel.overlap=2" in err
    assert found["would"].startswith("be refused")
    assert found["parameters"].startswith("335,936,")


def test_a_rank_of_many(plan):
    """On this machine or several: the memory of a rank, and no refusal by the size of this one."""
    words = [
        "parallel=ep8_fsdp",
        "train.global_batch=128",
        "train.micro_batch=1",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "8",
    ]
    found, _ = plan(*words)
    assert found["ranks"].split()[0] == "16"
    assert "dp_shard=16" in found["ranks"]
    assert "rank 0" in found["memory"]
    cfg = compose([*WORDS[1:], *(word for word in words if "=" in word)], world_size=16)
    assert float(found["weights"].split()[0]) == pytest.approx(rank_memory(cfg, 16).weights / 1e6, abs=0.05)


def test_phases_that_the_run_does_not_reach(plan):
    for steps, phases in (
        (270, "stable to step 270, anneal not reached"),
        (600, "stable to step 270, anneal to step 600"),
    ):
        assert plan(f"train.steps={steps}", data="toy_mixture")[0]["phases"] == phases


def test_deepspeed_is_an_estimate(plan):
    assert plan("optim.engine=deepspeed")[0]["memory"].startswith("roughly")


def test_the_recipe_of_ones_own_data_fits_together():
    """README's five commands; CI runs them."""
    recipe = Path(__file__).resolve().parents[2] / "docs" / "own_data"
    cfg = compose(["recipe=mine"], config_dirs=[recipe])
    assert list(cfg.data.sources) == ["mine"]
    assert cfg.train.steps * cfg.train.global_batch * cfg.data.seq_len == cfg.data.sources["mine"].tokens
    assert doubtful(cfg.optim, cfg.train.steps) == []


def test_no_torch_is_imported(tmp_path):
    program = "import sys; from launch.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *WORDS, "--dry-run"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert not list(tmp_path.iterdir())
