"""The directory that a run takes, and the errors of those it cannot take."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.printed import error_line
from trainer import start as entry
from trainer.config import coerce
from trainer.config.compose import compose, load
from trainer.config.errors import ConfigError
from trainer.config.keys import BEFORE, Config, config_hash, defining_values
from trainer.config.run_files import read_start
from trainer.run.directory import RunDir, choose, differences, finished_line, hold, last_step, prepare, withdraw

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def toy(*words):
    return compose(["recipe=toy", *words])


def start(cfg):
    """Do what rank 0 does up to the first step."""
    run = choose(cfg)
    prepare(run, cfg)
    (run.path / "metrics.jsonl").touch()
    return run


def save(run, step):
    folder = run.path / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def refusal(cfg):
    with pytest.raises(ConfigError) as caught:
        choose(cfg)
    (fault,) = caught.value.faults
    assert "\n" not in fault.text
    assert fault.allowed
    return fault


def test_default_names_are_those_from_before_keys_were_removed():
    # as the build before the removal of data.weights named them
    for words, digest in (([], "d23cc5e2"), (["data=synthetic"], "4b3e5366")):
        assert choose(toy(*words)).path == Path("runs", f"toy-{digest}")


def test_choosing_writes_nothing(tmp_path):
    cfg = toy()
    assert choose(cfg) == RunDir(Path("runs", f"toy-{config_hash(cfg)[:8]}"), "new")
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_continues_its_run():
    run = start(toy())
    assert choose(toy()) == replace(run, status="resume")
    save(run, 100)
    assert choose(toy("train.log_every=3", "train.micro_batch=4", "checkpoint.every=7")) == RunDir(
        run.path, "resume", 100
    )
    assert choose(toy("train.seed=1")).status == "new"


def test_a_run_may_resume_with_another_precision_and_says_so():
    run = start(toy())
    save(run, 100)
    other = toy("precision=fp8_reference", f"run.dir={run.path}")
    assert choose(other) == RunDir(run.path, "resume", 100, ["precision.experts: fp32 -> fp8_reference"])
    assert choose(toy("precision=fp8_reference")).status == "new"  # a new run has a directory of its own
    another_seed = toy("precision=fp8_reference", "train.seed=1", f"run.dir={run.path}")
    assert refusal(another_seed).allowed == ["train.seed: 0 -> 1"]


def test_the_resolved_configuration_is_in_the_directory_and_finds_it_again():
    run = start(toy("optim.lr=1e-3"))
    stored = load(run.path / "config.yaml")
    assert (stored.optim.lr, stored.run.dir) == (1e-3, str(run.path))
    assert choose(stored).path == run.path
    assert {file.name for file in run.path.iterdir()} == {"config.yaml", "metrics.jsonl"}


@pytest.mark.parametrize("other", [None, "notes.txt", "metrics.jsonl", "checkpoints"])
def test_a_refused_run_leaves_no_directory_unless_it_has_files_of_others(other):
    cfg = toy("run.dir=some/run")
    run = choose(cfg)
    with hold(run.path):
        prepare(run, cfg)
        if other:
            (run.path / other).mkdir()
        before = {file.name for file in run.path.iterdir()}
        withdraw(run)
        assert not run.path.exists() if other is None else {file.name for file in run.path.iterdir()} == before
    with hold(run.path):  # the next one makes it again
        assert run.path.is_dir()


@pytest.mark.parametrize("there", [(), ("notes.tmp",), ("config.yaml", "scratch.tmp/a.txt")])
def test_a_refused_run_leaves_what_was_in_its_directory_before_it(there):
    cfg = toy("run.dir=some/run")
    path = Path("some/run")
    for name in there:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine", encoding="utf-8")
    path.mkdir(parents=True, exist_ok=True)
    before = {*path.rglob("*")}
    run = choose(cfg)
    with hold(path):
        prepare(run, cfg)
        withdraw(run)
    assert {*path.rglob("*")} == before
    assert path.is_dir()


def test_a_run_that_is_not_resumed_keeps_its_directory():
    run = start(toy())
    (run.path / "metrics.jsonl").unlink()
    withdraw(replace(run, status="resume"))
    assert (run.path / "config.yaml").is_file()


def test_a_finished_run_says_which_key_extends_it(monkeypatch, capsys):
    cfg = toy("train.steps=200")
    run = start(cfg)
    save(run, 100)
    save(run, 200)
    finished = choose(cfg)
    assert finished == RunDir(run.path, "finished", 200)
    assert "train.steps" in finished_line(finished, cfg)
    assert choose(toy("train.steps=201")).status == "resume"
    monkeypatch.delitem(sys.modules, "trainer.run.process", raising=False)
    assert entry.main(["recipe=toy", "train.steps=200"]) == 0
    assert "Set train.steps above" in capsys.readouterr().out
    assert "trainer.run.process" not in sys.modules


@pytest.mark.parametrize(
    ("words", "saved", "steps", "rates", "smooth"),
    [
        ([], (200,), 400, ("0.0003", "0.003"), None),  # wsd: from the end of its decay back to its height
        ([], (120, 200), 400, ("0.0003", "0.003"), 120),
        (["optim.schedule=cosine", "optim.warmup_steps=0"], (100,), 400, ("0.00165", "0.0026"), None),
        ([], (160,), 161, ("0.003", "0.00038"), None),  # a shorter run falls at once
    ],
)
def test_another_number_of_steps_that_makes_the_learning_rate_jump_is_a_warning(words, saved, steps, rates, smooth):
    run = start(toy("train.steps=200", *words))
    for step in saved:
        save(run, step)
    (line,) = choose(toy(f"train.steps={steps}", *words)).warnings
    assert all(datum in line for datum in (f"step {saved[-1]} ", f"train.steps={steps}", "200", *rates))
    assert (smooth is None) == (str(run.path / "checkpoints") not in line)
    if smooth:
        (run.path / "checkpoints/step-200").rename("elsewhere")  # the remedy
        again = choose(toy(f"train.steps={steps}", *words))
        assert (again.step, again.warnings) == (smooth, [])


def test_another_number_of_steps_is_no_warning_before_the_decay_or_without_one():
    run = start(toy("train.steps=200"))
    save(run, 120)
    assert choose(toy("train.steps=400")).warnings == []
    assert choose(toy("train.steps=200")).warnings == []
    constant = start(toy("train.steps=200", "optim.schedule=constant"))
    save(constant, 200)
    assert choose(toy("train.steps=400", "optim.schedule=constant")).warnings == []


def test_only_complete_checkpoints_count():
    run = start(toy())
    save(run, 5)
    save(run, 40)
    (run.path / "checkpoints/step-300").mkdir()
    (run.path / "checkpoints/step-300.tmp").mkdir()
    (run.path / "checkpoints/step-300.tmp/manifest.json").write_text("{}")
    assert last_step(run.path) == 40


def test_resume_never_takes_the_next_free_suffix():
    first = start(toy())
    second = start(toy("train.resume=never"))
    third = start(toy("train.resume=never"))
    assert [second.path.name, third.path.name] == [f"{first.path.name}-2", f"{first.path.name}-3"]
    assert (second.status, third.status) == ("new", "new")
    assert choose(toy()).path == first.path
    assert start(toy("train.resume=never", "run.dir=here")).path == Path("here")
    assert choose(toy("train.resume=never", "run.dir=here")).path == Path("here-2")


def test_a_directory_of_another_configuration_is_refused_with_the_keys_that_differ():
    start(toy("run.dir=here"))
    assert choose(toy("run.dir=here", "train.steps=900")).status == "resume"
    fault = refusal(toy("run.dir=here", "optim.lr=1e-5", "model.num_layers=2", "train.log_every=1"))
    old = toy()
    assert (fault.where, fault.value) == ("run.dir", "here")
    assert fault.allowed == [
        f"model.num_layers: {old.model.num_layers} -> 2",
        f"optim.lr: {old.optim.lr} -> 1e-05",
    ]
    assert all(line in fault.text for line in fault.allowed)


def test_a_long_list_of_differences_is_cut_and_the_command_that_prints_all_is_named():
    first = start(toy("run.dir=one"))
    changed = ["train.seed=5", "optim.lr=1", "optim.eps=1", "optim.weight_decay=3", "train.global_batch=16"]
    changed.append("model.num_layers=2")
    fault = refusal(toy(f"run.dir={first.path}", *changed))
    assert len(fault.allowed) == 6
    assert [line in fault.text for line in fault.allowed] == [True] * 4 + [False] * 2
    assert f"octavo config --diff {first.path}" in fault.text


def test_weights_that_are_missing_are_named_before_anything_is_written():
    cfg = toy("checkpoint.init_from=there")
    run = choose(cfg)
    for make in (lambda: None, Path("there").touch):
        make()
        with pytest.raises(ConfigError) as refused:
            prepare(run, cfg)
        assert (refused.value.where, refused.value.value) == ("checkpoint.init_from", "there")
        assert not run.path.exists()


def test_a_run_from_before_init_from_has_its_name_and_resumes():
    cfg = toy()
    names = [key for key in defining_values(cfg) if key.startswith("checkpoint.")]
    assert names == []
    assert "checkpoint.init_from" in defining_values(toy("checkpoint.init_from=there"))
    run = start(cfg)
    save(run, 100)
    file = run.path / "config.yaml"
    text = file.read_text()
    assert "  init_from: null\n" in text
    assert choose(cfg) == RunDir(run.path, "resume", 100)
    file.write_text(text.replace("  init_from: null\n", ""))
    assert choose(cfg) == RunDir(run.path, "resume", 100)
    fault = refusal(toy("checkpoint.init_from=there", f"run.dir={run.path}"))
    assert fault.allowed == ["checkpoint.init_from: null -> there"]
    Path("there").mkdir()
    other = start(toy("checkpoint.init_from=there"))
    assert other.path != run.path
    save(other, 100)
    assert refusal(toy(f"run.dir={other.path}")).allowed == ["checkpoint.init_from: there -> null"]


def test_a_run_directory_of_an_earlier_version_is_resumed_or_refused_by_key():
    """One whose configuration lacks the objective's keys and has data.weights, which only data=toy read."""
    run = start(toy())
    save(run, 100)
    file = run.path / "config.yaml"
    text = file.read_text().replace("  objective: next_token\n", "").replace("  contrastive_temperature: 0.07\n", "")
    assert "objective" not in text
    file.write_text(text.replace("\ndata:\n", "\ndata:\n  weights: {}\n"))
    assert choose(toy()) == RunDir(run.path, "resume", 100)
    fault = refusal(toy("train.objective=contrastive", f"run.dir={run.path}"))
    assert fault.allowed == ["train.objective: next_token -> contrastive"]
    file.write_text(text.replace("\ndata:\n", "\ndata:\n  weights: {prose: 1.0}\n"))
    fault = refusal(toy(f"run.dir={run.path}"))
    assert (fault.where, fault.allowed) == ("run.dir", ["data.weights.prose: 1.0 -> (missing)"])


def test_a_key_that_a_run_lacks_without_being_older_is_refused():
    run = start(toy())
    file = run.path / "config.yaml"
    text = file.read_text()
    assert "\n  seed: 0\n" in text
    file.write_text(text.replace("\n  seed: 0\n", "\n"))
    assert refusal(toy(f"run.dir={run.path}")).allowed == ["train.seed: (missing) -> 0"]
    defaults = coerce.flatten(coerce.defaults(Config), coerce.keys(Config))
    assert {key: defaults[key] for key in BEFORE} == BEFORE


def test_an_empty_directory_is_taken_and_one_of_something_else_refused():
    Path("empty").mkdir()
    assert start(toy("run.dir=empty")).status == "new"
    Path("home").mkdir()
    Path("home/thesis.tex").write_text("")
    assert (refusal(toy("run.dir=home")).where, refusal(toy("run.dir=home")).value) == ("run.dir", "home")
    Path("home/config.yaml").write_text("a: [")
    fault = refusal(toy("run.dir=home"))
    assert (fault.where, fault.allowed) == ("home/config.yaml", "restore it, or use another run.dir")
    for text in ("", "# nothing\n", "- a\n"):
        Path("home/config.yaml").write_text(text)
        again = refusal(toy("run.dir=home"))
        assert (again.where, again.allowed) == (fault.where, fault.allowed)
        with pytest.raises(ConfigError) as caught:
            read_start(Path("home"))
        assert caught.value.faults == (again,)
    Path("home/config.yaml").write_text("model: toy\n")
    assert "model.vocab_size: (missing) -> 4096" in refusal(toy("run.dir=home")).allowed


def test_files_of_a_failed_start_may_be_overwritten_and_others_not():
    prepare(RunDir(Path("run"), "new"), toy("run.dir=run"))
    assert choose(toy("run.dir=run", "train.seed=1")).status == "new"
    Path("run/source").mkdir()
    Path("run/source/notes").write_text("")
    assert refusal(toy("run.dir=run", "train.seed=1")).allowed == ["train.seed: 0 -> 1"]
    Path("run/config.yaml").unlink()
    assert refusal(toy("run.dir=run")).allowed == "a new or an empty directory"


def assert_unwritable(fault, path, code):
    assert (fault.where, fault.value, fault.allowed) == ("run.dir", path, "a directory that you may write to")
    assert os.strerror(code) in fault.text


def test_a_file_in_the_way():
    Path("file").write_text("")
    for path in ("file", "file/deeper"):
        assert_unwritable(refusal(toy(f"run.dir={path}")), path, errno.ENOTDIR)
    with pytest.raises(ConfigError) as caught:
        prepare(RunDir(Path("file/deeper"), "new"), toy())
    assert_unwritable(caught.value.faults[0], "file/deeper", errno.ENOTDIR)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission():
    Path("locked").mkdir(mode=0o500)
    assert_unwritable(refusal(toy("run.dir=locked/run")), "locked/run", errno.EACCES)


def test_an_unwritable_directory_is_one_line_and_exit_code_2(capsys):
    """/proc takes no directories, not even root's."""
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    fault = refusal(toy("run.dir=/proc/run"))
    assert (fault.where, fault.value) == ("run.dir", "/proc/run")
    with pytest.raises(ConfigError) as caught:
        prepare(RunDir(Path("/proc/run"), "new"), toy())
    assert (caught.value.where, caught.value.value) == ("run.dir", "/proc/run")
    assert entry.main(["recipe=toy", "run.dir=/proc/run"]) == 2
    error_line(capsys.readouterr().err, "run.dir=/proc/run")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"status": "new"}'])
def test_a_bad_run_directory_file_is_one_line(content, capsys):
    if content is not None:
        Path("run.json").write_text(content)
    assert entry.main(["recipe=toy", "--run-directory", "run.json"]) == 2
    error_line(capsys.readouterr().err, "--run-directory", "run.json")


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "abc"), ("RANK", "-1"), ("WORLD_SIZE", "0")])
def test_a_bad_rank_or_world_size_is_one_line(name, value, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert entry.main(["recipe=toy"]) == 2
    error_line(capsys.readouterr().err, f"{name}={value}")


def test_differences_name_keys_of_either_side():
    assert differences({"a": 1, "b": None}, {"a": 1, "b": True, "c": "x"}) == ["b: null -> true", "c: (missing) -> x"]
    assert differences({"a": 1, "z": 2}, {"a": 1}) == ["z: 2 -> (missing)"]


def test_every_process_comes_to_the_same_hash():
    """Hash randomisation and the order of overrides move nothing."""
    program = (
        "import sys; from trainer.config.compose import compose; from trainer.config.keys import config_hash;"
        "print(config_hash(compose(sys.argv[1:])))"
    )
    words = ["recipe=toy", "optim.lr=1e-3", "data.sources.code.max_epochs=2"]
    hashes = set()
    for seed, order in (("1", words), ("2", words[::-1])):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(
            [sys.executable, "-c", program, *order], env=env, capture_output=True, text=True, check=True
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_a_directory_where_no_step_was_taken_binds_no_later_run(tmp_path):
    first = toy(f"run.dir={tmp_path / 'run'}")
    with hold(tmp_path / "run"):
        prepare(choose(first), first)
    other = replace(first, train=replace(first.train, seed=7))
    assert choose(other).status == "new"
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert refusal(other).allowed == ["train.seed: 0 -> 7"]


def test_a_directory_in_use_is_refused_until_its_process_lets_go(tmp_path):
    with hold(tmp_path / "run"), pytest.raises(ConfigError) as refused:
        hold(tmp_path / "run")
    assert (refused.value.where, refused.value.value) == ("run.dir", str(tmp_path / "run"))
    assert str(os.getpid()) in refused.value.lines[0]
    hold(tmp_path / "run").close()
