"""The last words of a run: its held-out losses, and commands that work as they are printed."""

import json
import shlex
from pathlib import Path

import pytest

from launch.cli import main
from tests.trainer.tiny_run import tiny_config
from trainer.config.compose import compose
from trainer.metrics.closing import closing_text, next_text
from trainer.metrics.history import read_tail

STEPS = [{"step": step, "loss": 8.0 - step / 10, "tokens": 100} for step in range(1, 21)]
EVALUATIONS = [
    {"step": 10, "event": "evaluation", "heldout": {"code": 5.0, "prose": 4.0}},
    {"step": 15, "event": "evaluation", "heldout": {"code": 3.0, "prose": None}},
    {"step": 20, "event": "evaluation", "heldout": {"code": 3.5, "prose": 3.25}, "unigram": {"code": 7.01},
     "uniform": 8.318},
]  # fmt: skip


def record(directory: Path, *lines: dict | str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "metrics.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def table(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in (line.split() for line in text.splitlines()) if words}


def test_the_table_has_the_best_and_the_last_of_each_source(tmp_path):
    record(tmp_path, *STEPS, *EVALUATIONS)
    text = closing_text(tmp_path, "checkpoints/step-20")
    rows = table(text)
    assert rows["held-out"] == ["unigram", "best", "at", "step", "last"]
    assert rows["code"] == ["7.01", "3.00", "15", "3.50"]
    assert rows["prose"] == ["3.25", "20", "3.25"]  # no unigram is known, and one evaluation had no tokens of it
    assert "8.32" in text
    assert rows["run"] == [str(tmp_path)]
    assert "2,000 tokens" in text
    assert "7.9000 -> 6.4500" in text  # the mean of the last ten
    assert read_tail(tmp_path / "metrics.jsonl").loss == pytest.approx(6.45)  # as `octavo runs` shows


def test_a_document_that_is_left_out_again_and_again_counts_once(tmp_path):
    left_out = {"step": 1, "event": "warning", "message": "document 3", "unreadable": 1}
    again = {"step": 2, "loss": 7.0, "tokens": 100, "unreadable": 19}
    record(tmp_path, left_out, again, left_out | {"step": 3})  # of a later start
    assert "unreadable  1 sample(s) or document(s), replaced or left out in 21 place(s)" in closing_text(
        tmp_path, "none"
    )


@pytest.mark.parametrize(
    ("losses", "loss"),
    [
        ([3.0], 3.0),
        ([3.0, None], 3.0),
        ([9.0, *range(10)], 4.5),
        ([9.0, *[None] * 10], 9.0),
        ([None, None], None),
        ([5.0, *[None] * 9, 1.0], 1.0),
    ],
)
def test_the_loss_of_a_run_is_the_same_at_its_end_and_in_the_list(tmp_path, losses, loss):
    record(tmp_path, *({"step": step, "loss": value, "tokens": 1} for step, value in enumerate(losses, 1)))
    assert read_tail(tmp_path / "metrics.jsonl").loss == loss
    shown = [line for line in closing_text(tmp_path, "none").splitlines() if "->" in line]
    assert (loss is None and not shown) or f"-> {loss:.4f} " in shown[0]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1, "loss": None, "tokens": 0}],
        [{"step": 1, "loss": "nan", "tokens": None}, {"step": 1, "event": "evaluation", "heldout": {"code": None}}],
        [{"step": 1, "event": "evaluation", "unigram": {"code": "nan"}, "uniform": None}],
        ["not json", "[]", '{"step": true}', '{"step": 1, "event": 3}'],
    ],
    ids=["nothing", "no loss", "not finite", "baselines alone", "damaged"],
)
def test_what_a_record_lacks_is_left_out(tmp_path, lines):
    record(tmp_path, *lines)
    text = closing_text(tmp_path, "none")
    assert "None" not in text
    assert "nan" not in text
    assert [line.split()[0] for line in text.splitlines()] == ["run", "checkpoint"]


def test_without_a_record_there_is_still_a_directory(tmp_path):
    assert str(tmp_path) in closing_text(tmp_path, "none")


def test_an_accuracy_is_best_where_it_is_highest(tmp_path):
    lines = [{"step": n, "event": "evaluation", "heldout_accuracy": {"code": n / 10}} for n in (3, 9, 6)]
    record(tmp_path, *lines)
    assert "code accuracy  0.90        9  0.60" in closing_text(tmp_path, "none")


TYPED = ["octavo", "train", "recipe=toy", "data=synthetic", "train.steps=40", "--nproc-per-node", "1"]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_the_next_command_continues_this_run(tmp_path, monkeypatch, resume):
    """As it is typed: composed again, it names the same directory, and twice the steps."""
    monkeypatch.chdir(tmp_path)
    typed = [*TYPED, f"train.resume={resume}"]
    cfg = compose([word for word in typed[2:] if "=" in word])
    run_dir = Path("runs", "a b=2") if resume == "never" else Path("runs", "toy-1")
    text = next_text(cfg, run_dir, typed, 1)
    words = shlex.split(text.splitlines()[-1])
    assert words[:2] == typed[:2]
    assert "--nproc-per-node" in words
    again = compose([word for word in words[2:] if "=" in word])
    assert again.train.steps == 80
    assert again.train.resume == "auto"
    assert again.run.dir == (str(run_dir) if resume == "never" else None)
    assert again.optim == cfg.optim


def test_steps_that_the_mixture_does_not_have_are_not_suggested(tmp_path):
    cfg = compose(
        ["recipe=toy", *(f"data.sources.{name}.max_epochs=0.2" for name in ("pubchem", "thermo", "code", "prose"))]
    )
    lines = next_text(cfg, tmp_path, TYPED, 1)
    assert "train.steps=330" in lines or "train.steps" not in lines


def test_the_command_of_another_launcher_is_not_guessed(tmp_path):
    lines = next_text(tiny_config(tmp_path), tmp_path, [], 1).splitlines()
    assert lines[1].split()[:2] == ["octavo", "inspect"]
    assert lines[-1].strip().startswith("#")
    assert "train.steps=16" in lines[-1]


def test_an_export_that_exists_is_not_suggested_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("outputs", "run-1").mkdir(parents=True)
    assert shlex.split(next_text(tiny_config("run-1"), Path("run-1"), [], 1).splitlines()[2])[-1] == "outputs/run-1-2"


def test_the_end_of_a_long_record_is_read_from_its_end(tmp_path):
    filler = [{"step": step, "loss": None, "note": "x" * 5000} for step in range(100)]
    path = record(
        tmp_path, EVALUATIONS[2], *filler, {"step": 100, "loss": 2.5}, *filler[:60], {"step": 101, "event": "stopped"}
    )
    tail = read_tail(path)
    assert (tail.step, tail.loss, tail.evaluated, tail.ending) == (101, 2.5, 20, "stopped")
    assert tail.heldout == {"heldout": {"code": 3.5, "prose": 3.25}}


@pytest.mark.parametrize("event", ["done", "stopped", "failed"])
def test_a_start_after_the_end_makes_the_end_unknown(tmp_path, event):
    ending = {"done": "finished"}.get(event, event)
    assert read_tail(record(tmp_path, *STEPS, {"step": 20, "event": event})).ending == ending
    assert read_tail(record(tmp_path, *STEPS, {"step": 20, "event": event}, {"step": 20, "event": "run"})).ending == ""


def test_a_torn_record_is_read_as_far_as_it_goes(tmp_path):
    path = record(tmp_path, *STEPS, *EVALUATIONS)
    path.write_bytes(path.read_bytes()[:-20])
    assert (read_tail(path).step, read_tail(path).evaluated) == (20, 15)
    path.write_bytes(b"")
    assert (read_tail(path).step, read_tail(path).loss) == (0, None)


def test_the_suggested_commands_exist(tmp_path, capsys):
    chats = tiny_config(tmp_path)
    chats.data.name = "chat"
    lines = [*next_text(tiny_config(tmp_path), tmp_path, [], 1).splitlines()[1:-1]]
    more = next_text(chats, tmp_path, [], 1)
    assert f"    octavo chat {tmp_path}\n" in more
    assert "octavo chat" not in "".join(lines)
    for line in [*lines, *more.splitlines()[1:-1]]:
        command = shlex.split(line)[1]
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "usage" in capsys.readouterr().out
