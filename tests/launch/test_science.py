import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rows = "".join(f"alloy {n},{1000 + 37 * n}.50\n" for n in range(40))
    (tmp_path / "alloys.csv").write_text("name,mp\n" + rows + "twice,1\ntwice,2\n")
    (tmp_path / "columns.yaml").write_text("name: name\nproperties: {mp: {said: melting point, unit: K}}\n")
    return ["science", "--records", str(tmp_path / "alloys.csv"), "--columns", str(tmp_path / "columns.yaml")]


def test_records_become_lines_that_differ_with_the_seed_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")]
    for out, more in zip(outs, ([], [], ["--seed", "1"], ["--tasks", "0"]), strict=True):
        assert main([*words, str(out), *more]) == 0
    printed = capsys.readouterr()
    assert "a.jsonl: 120 texts (" in printed.out
    assert "2 records left out: others have their names" in printed.err
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    lines = [json.loads(line) for line in outs[0].read_text().splitlines()]
    assert {tuple(line) for line in lines} == {("text", "origin", "form", "name")}
    assert {line["form"] for line in lines} == {"narration", "qa", "completion", "choice", "ranking"}
    assert all("alloy" in line["text"] for line in lines)
    alone = [json.loads(line) for line in outs[3].read_text().splitlines()]
    assert [line for line in lines if line["form"] == "narration"] == alone
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_is_not_overwritten_nor_written_by_two(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert main([*words, str(out)]) == 1
    assert "out.jsonl exists and is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    with (tmp_path / "out.jsonl.tmp").open("w") as held:
        held.write("half a line of one that was killed")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main([*words, str(out)]) == 1
        assert "is being written by another process" in capsys.readouterr().err
    assert main([*words, str(out)]) == 0
    assert len(out.read_text().splitlines()) == 120


def test_wrong_words_and_wrong_records_are_one_line(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.jsonl")
    for more, said in (
        (["science", out], "name either --source NAME ... or --records FILE"),
        (["science", out, "--records", "x.csv"], "--records FILE and --columns YAML go together"),
        ([*words, out, "--tasks", "5"], "--tasks=5: use 0, 1, 2, 3 or 4"),
        (["science", out, "--source", "alchemy"], "invalid choice: 'alchemy'"),
    ):
        with pytest.raises(SystemExit):
            main(more)
        assert said in capsys.readouterr().err
    (tmp_path / "alloys.csv").write_text("name,mp\nx,much\n")
    assert main([*words, out]) == 1
    assert "column 'mp': 'much' is no number" in capsys.readouterr().err


def test_the_command_starts_without_torch(words: list[str], tmp_path: Path) -> None:
    script = "import sys; from launch.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    run = [sys.executable, "-c", script, *words, str(tmp_path / "out.jsonl")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_example_of_the_docs_works(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "science.md"
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
