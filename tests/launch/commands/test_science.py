import fcntl
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.refused import refused
from tests.printed import error_line
from trainer.corpora.science.recordings.sources import RECORDED
from trainer.corpora.science.records import Table
from trainer.corpora.science.tables.builtin import TABLES
from trainer.data.questions.records import read_questions

QUESTIONS = ("data.questions.science.path", "data.questions.science.heldout")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rows = "".join(f"alloy {n},{1000 + 37 * n}.50\n" for n in range(40))
    (tmp_path / "alloys.csv").write_text("name,mp\n" + rows + "twice,1\ntwice,2\n")
    (tmp_path / "columns.yaml").write_text("name: name\nproperties: {mp: {label: melting point, unit: K}}\n")
    return ["science", "--records", str(tmp_path / "alloys.csv"), "--columns", str(tmp_path / "columns.yaml")]


def test_records_become_lines_that_differ_with_the_seed_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")]
    for out, more in zip(outs, ([], [], ["--seed", "1"], ["--tasks", "0"]), strict=True):
        assert main([*words, str(out), *more]) == 0
    printed = capsys.readouterr()
    assert "a.jsonl: 120 texts (" in printed.out
    assert any("2 records" in line for line in printed.err.splitlines())
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    lines = [json.loads(line) for line in outs[0].read_text().splitlines()]
    assert {tuple(line) for line in lines} == {("text", "origin", "form", "name")}
    assert {line["form"] for line in lines} == {"narration", "qa", "completion", "choice", "ranking"}
    assert all("alloy" in line["text"].lower() for line in lines)
    alone = [json.loads(line) for line in outs[3].read_text().splitlines()]
    assert [line for line in lines if line["form"] == "narration"] == alone
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_is_not_overwritten_nor_written_by_two(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert main([*words, str(out)]) == 2
    assert refused(*words, str(out)).where == str(out)
    error_line(capsys.readouterr().err, out)
    assert out.read_text() == "mine"
    out.unlink()
    with (tmp_path / "out.jsonl.tmp").open("w") as held:
        held.write("half a line of one that was killed")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main([*words, str(out)]) == 1
        error_line(capsys.readouterr().err.splitlines()[-1], out)
    assert main([*words, str(out)]) == 0
    assert len(out.read_text().splitlines()) == 120


def test_wrong_words_and_wrong_records_are_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.jsonl")
    for more, where, value, allowed in (
        (["science", out], "--source", None, "give either --source NAME ... or --records FILE with --columns YAML"),
        (["science", out, "--records", "x.csv"], "--columns", None, "both, or neither"),
        ([*words, out, "--model", "m"], "--rollouts", None, "both, or neither"),
        ([*words, out, "--concurrency", "2"], "--concurrency", 2, "--rollouts"),
        ([*words, out, "--ledger", "answers"], "--ledger", "answers", "--rollouts"),
        ([*words, out, "--tasks", "5"], "--tasks", "5", "0 to 4"),
        ([*words, out, "--tasks", "two"], "--tasks", "two", "0 to 4"),
        ([*words, out, "--seed", "-1"], "--seed", "-1", "a whole number, 0 or more"),
        ([*words, out, "--retries", "-1"], "--retries", "-1", "a whole number, 0 or more"),
        ([*words, out, "--timeout", "nan"], "--timeout", "nan", "a number above 0, such as 120"),
        (["science", out, "--source", "alchemy"], "--source", "alchemy", (*TABLES, *RECORDED)),
    ):
        fault = refused(*more)
        assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)
    (tmp_path / "alloys.csv").write_text("name,mp\nx,much\n")
    assert main([*words, out]) == 1
    error_line(capsys.readouterr().err, tmp_path / "alloys.csv", "'mp'", "'much'")


def test_a_directory_that_there_is_not_is_made_and_nothing_stays_of_an_error(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "corpora" / "out.jsonl"
    gone = "http://127.0.0.1:9/v1"  # the port of discard
    rollouts = ["--rollouts", gone, "--model", "m", "--retries", "0"]
    assert main([*words, str(out), *rollouts]) == 1
    error_line(capsys.readouterr().err.splitlines()[-1], gone, 20, "ConnectError")
    assert not out.with_name("out.jsonl.tmp").exists()
    out.with_name("out.jsonl.rollouts").unlink()
    assert main([*words, str(out)]) == 0
    assert main([*words, str(out), *rollouts]) == 2
    error_line(capsys.readouterr().err.splitlines()[-1], out)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert main([*words, str(out / "below.jsonl")]) == 1
    error_line(capsys.readouterr().err.splitlines()[-1], out)


def test_questions_go_into_two_files_that_share_no_record(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, heldout = tmp_path / "q.jsonl", tmp_path / "q.heldout.jsonl"
    assert main([*words, str(out), "--questions", "messages"]) == 0
    found = [[json.loads(line) for line in path.read_text().splitlines()] for path in (out, heldout)]
    assert all(found)
    assert not {row["origin"] for row in found[0]} & {row["origin"] for row in found[1]}
    records = read_questions(out)
    assert {one.data["kind"] for one in records} == {"quantity", "choice", "text"}
    assert "q.heldout.jsonl: " in capsys.readouterr().out
    out.unlink()
    assert refused(*words, str(out), "--questions", "text").where == str(heldout)
    for more in (["--rollouts", "http://127.0.0.1:9/v1", "--model", "m"], ["--tasks", "0"], ["--questions", "chat"]):
        heldout.unlink(missing_ok=True)
        assert refused(*words, str(out), "--questions", "text", *more).where in ("--questions", "--tasks")
    (tmp_path / "alloys.csv").write_text("name,mp\nalloy 1,1000.50\n")  # one group
    assert main([*words, str(out), "--questions", "text"]) == 1
    error_line(capsys.readouterr().err.splitlines()[-1], "--questions")
    assert not out.exists()
    assert not heldout.exists()


@pytest.mark.parametrize("name", ["pint", "rdkit"])
def test_questions_are_refused_without_a_package_that_checks_answers(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("launch.commands.science.find_spec", lambda package: None if package == name else package)
    fault = refused(*words, str(tmp_path / "q.jsonl"), "--questions", "text")
    assert (fault.where, fault.value) == ("--questions", name)
    assert not list(tmp_path.glob("q*"))


def test_the_next_command_names_the_files_of_the_questions(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, given in (("science.jsonl", {"data.root"}), ("q.jsonl", {"data.root", *QUESTIONS})):
        assert main([*words, str(tmp_path / out), "--questions", "text"]) == 0
        following = shlex.split(capsys.readouterr().out.splitlines()[-1])
        values = dict(word.split("=", 1) for word in following[3:])
        recipe = values.pop("recipe")
        assert (recipe, set(values)) == ("rl_science", given)
        assert all((tmp_path / values[key]).is_file() for key in QUESTIONS if key in values)


def test_a_source_that_is_named_twice_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("metals", "metal", "metals", {}, [])
    monkeypatch.setattr("launch.commands.science.TABLES", {"metals": lambda: [table]})
    assert main(["science", str(tmp_path / "out.jsonl"), "--source", "metals", "--source", "metals"]) == 0
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2
    assert re.match(r"warning: .*--source metals\b.*\b2\b", printed[0])
    assert printed[1] == "metals: 0 records"


def test_the_command_needs_neither_torch_nor_a_client(words: list[str], tmp_path: Path) -> None:
    script = "import sys; from launch.cli import main; main(sys.argv[1:]); print({'torch', 'httpx'} & set(sys.modules))"
    run = [sys.executable, "-c", script, *words, str(tmp_path / "out.jsonl")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_example_of_the_docs_works(tmp_path: Path) -> None:
    docs = Path(__file__).parents[3] / "docs" / "science.md"
    (columns,) = re.findall(r"```yaml\n(.*?)```", docs.read_text(), re.S)
    (tmp_path / "columns.yaml").write_text(columns)
    (tmp_path / "alloys.csv").write_text(
        "alloy,id,mp,hv,class\n" + "".join(f"a{n},{n},9{n}.0,2{n},x\n" for n in range(9))
    )
    out = tmp_path / "out.jsonl"
    words = [
        "science",
        str(out),
        "--records",
        str(tmp_path / "alloys.csv"),
        "--columns",
        str(tmp_path / "columns.yaml"),
    ]
    assert main(words) == 0
    assert "Vickers hardness of a3 at room temperature" in out.read_text()
