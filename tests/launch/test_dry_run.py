"""`octavo train --dry-run`: what a command would do, without doing any of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.arithmetic import arithmetic
from launch.cli import main
from tests.printed import error_line
from tests.trainer.data.small_mixture import make_mixture
from trainer.config import coerce
from trainer.config.checks.optim import doubtful
from trainer.config.compose import compose, to_yaml
from trainer.config.memory import rank_memory
from trainer.run.directory import hold
from trainer.storage.manifest import CHECKPOINT

SIZE = re.compile(r"([0-9.,]+) ([MG])B")
WORDS = ["train", "recipe=toy", "data=synthetic", "run.dir=run"]


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Runs a dry run in an empty directory; returns name -> text of its lines, and what it warned of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *_: 1 / 0)
    monkeypatch.setattr("launch.commands.train.GPU_DEVICES", ())
    monkeypatch.setattr("launch.commands.train.host.memory", lambda: 16 * 10**9)

    def run(*words: str, data: str = "synthetic", code: int = 0) -> tuple[dict[str, str], str]:
        before = snapshot(tmp_path)
        assert main([*WORDS[:2], f"data={data}", WORDS[3], *words, "--dry-run"]) == code
        assert snapshot(tmp_path) == before, "a dry run writes nothing"
        out, err = capsys.readouterr()
        return {line[:14].strip(): line[14:] for line in out.splitlines()}, err

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def save(step: int, *words: str) -> None:
    folder = Path("run", "checkpoints", f"step-{step}")
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234")
    CHECKPOINT.write(folder, {"step": step}, {"weights": CHECKPOINT.file_facts(folder / "weights")})
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


def test_the_arithmetic_of_pairs_has_the_tower_of_images_and_no_head():
    cfg = compose(["recipe=vision_contrastive"])
    side, batch = cfg.model.vision.patch_size * cfg.model.vision.merge, cfg.train.global_batch
    text = cfg.model.flops_per_token(cfg.data.seq_len) - 6 * cfg.model.vocab_size * cfg.model.hidden_size
    areas = (cfg.data.min_pixels, cfg.data.max_pixels)
    images = [
        area / side**2 * cfg.model.vision.flops_per_token(area // cfg.model.vision.patch_size**2) for area in areas
    ]
    numbers = [float(word) for word in arithmetic(cfg).split() if word[0].isdigit()]
    assert numbers == pytest.approx([batch * cfg.data.seq_len * text, *(batch * each for each in images)], rel=5e-3)


def test_the_inputs_of_towers_are_bounded_for_pairs_and_otherwise_left_out(plan, capsys):
    words = ["recipe=vision_contrastive", "run.dir=run", "train.device=cpu"]
    assert main(["train", *words, "--dry-run"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  activations"))
    found = [float(size.replace(",", "")) * 10 ** {"M": 6, "G": 9}[unit] for size, unit in SIZE.findall(line)]
    cfg = compose(words)
    vision = cfg.model.vision
    row = vision.width * vision.num_layers * 2 * cfg.train.micro_batch / vision.patch_size**2  # bf16
    counted = [rank_memory(cfg, 1).activations, row * cfg.data.min_pixels, row * cfg.data.max_pixels]
    assert found == pytest.approx(counted, rel=0.01)
    assert "text model" in plan("model=toy_multimodal")[0]["activations"]
    assert "text model" not in plan()[0]["activations"]


def test_a_run_that_would_resume_or_is_finished_or_in_use(plan):
    save(100)
    assert plan()[0]["would"].startswith("resume after step 100: 200 steps")
    assert plan("train.steps=100")[0]["would"].startswith("do nothing: step 100")
    assert plan("train.resume=never")[0]["directory"] == "run-2"
    with hold(Path("run")):
        assert str(os.getpid()) in plan()[0]["would"]


def test_a_damaged_checkpoint_is_passed_over_and_an_error_if_it_is_the_only_one(plan):
    save(100)
    save(200)
    Path("run/checkpoints/step-200/weights").write_bytes(b"123")
    found, err = plan()
    assert found["would"].startswith("resume after step 100: 200 steps")
    assert "step-200/weights" in err
    Path("run/checkpoints/step-100/manifest.json").write_text("{")
    found, err = plan(code=2)
    assert [line.split()[1] for line in err.splitlines()] == [
        str(Path("run/checkpoints", file)) for file in ("step-200/weights", "step-100/manifest.json")
    ]


def test_files_of_the_corpora_that_are_not_as_written_are_errors_and_those_elsewhere_a_warning(
    plan, tmp_path, monkeypatch
):
    data = make_mixture(tmp_path, monkeypatch)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/small.yaml").write_text(yaml.safe_dump(coerce.to_dict(data) | {"root": "."}, sort_keys=False))
    words = ["--config-dir", ".", "train.steps=3", "optim.warmup_steps=0"]
    assert plan(*words, data="small")[1] == ""
    for suffix in ("bin", "idx"):
        file = next(Path("web").glob(f"train-*.{suffix}"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-3])
        found, err = plan(*words, data="small", code=2)
        error_line(err, "data.sources.web", file)
        assert found["would"].startswith("start")
        assert plan(*words, "data.on_fault=skip", data="small")[1].startswith("warning: data.sources.web")
        file.write_bytes(whole)
    Path("web").rename("elsewhere")
    assert "web" in plan(*words, data="small")[1]
    Path("web").mkdir()
    error_line(plan(*words, data="small", code=2)[1], "data.sources.web", Path("web/manifest.json"))


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


def test_the_directory_on_nvme(plan, tmp_path):
    words = ["optim.engine=deepspeed", "optim.zero_stage=3", "optim.offload=nvme"]
    found, err = plan(*words, "optim.nvme_dir=elsewhere")
    assert "optim.nvme_dir=elsewhere" in err
    assert found["would"] == "start a new run"
    Path("disk").mkdir()
    found, err = plan(*words, "optim.nvme_dir=disk")
    assert err == ""
    assert found["NVMe"].endswith(" free")
    Path("file").touch()
    for path in ("file", "/dev/shm"):
        found, _ = plan(*words, f"optim.nvme_dir={path}")
        assert found["would"].startswith(f"be refused on this machine: optim.nvme_dir={path} ")


def test_published_weights_that_are_elsewhere(plan):
    assert "checkpoint.init_from=elsewhere" in plan("checkpoint.init_from=elsewhere")[1]


def test_questions_and_a_reference_that_are_elsewhere(plan):
    words = ["train.objective=policy", "model.balance_coef=0", "rl.kl_coef=0.1", "rl.kl_reference=elsewhere"]
    Path("science.jsonl").touch()
    err = plan(*words, "data.tokenizer=tokenizer.json", "data.seq_len=256", data="science_questions")[1]
    lines = [line.split()[1] for line in err.splitlines()]
    assert sorted(lines) == ["data.questions.science.heldout=science.heldout.jsonl", "rl.kl_reference=elsewhere"]


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
