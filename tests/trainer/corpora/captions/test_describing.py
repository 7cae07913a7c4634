"""`octavo captions` with a captioner: from PDFs to captions that pass."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from launch.cli import main
from tests.printed import error_line
from tests.trainer.corpora.captions.describe.caption_server import Server, caption_server
from trainer.corpora.captions.describe.rows import read_captions
from trainer.corpora.captions.pipeline import LEDGERS, PLAN, STAGES
from trainer.corpora.captions.reports import StageReport
from trainer.corpora.captions.tables import read_crops


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """Two PDFs of three pages with a figure each."""
    folder = tmp_path / "papers"
    folder.mkdir()
    for paper in range(2):
        canvas = Canvas(str(folder / f"{paper}.pdf"), pagesize=(300, 400), invariant=1)
        for page in range(3):
            canvas.rect(40 + 20 * page + 7 * paper, 120, 180, 150)
            canvas.line(60, 140, 200, 180 + 20 * page)
            canvas.drawString(40, 96, f"Figure {page + 1}: box {page} of {paper}")
            canvas.showPage()
        canvas.save()
    return folder


def run(tmp_path: Path, papers: Path, *more: str) -> int:
    return main(["captions", str(tmp_path / "out"), str(papers), "--workers", "1", *more])


def captioners(tmp_path: Path, server: Server) -> str:
    path = tmp_path / "captioners.yaml"
    path.write_text(json.dumps({"general": {"url": server.url, "model": "m", "backoff": 0.01, "retries": 1}}))
    return str(path)


def test_pdfs_become_captions_and_a_second_start_asks_nothing(tmp_path, papers, capsys):
    with caption_server(lambda number, before: ("well", "refuse")[len(server.asked) == 1]) as server:
        assert run(tmp_path, papers) == 0  # without captioners
        assert not (tmp_path / "out" / "captions").exists()
        file = captioners(tmp_path, server)
        assert run(tmp_path, papers, "--captioners", file) == 0
        asked = server.asked.total()
        assert run(tmp_path, papers, "--captioners", file) == 0
        assert server.asked.total() == asked
    crops = list(read_crops(tmp_path / "out" / "dedup", images=False))
    reports = {name: StageReport.read(tmp_path / "out" / name) for name in ("captions", "quality")}
    count = reports["captions"].counts["crops"]
    assert (count.came, asked) == (len(crops), len([crop for crop in crops if crop.kind == "figure"]))
    assert asked == 6
    assert count.dropped["refused"] >= 1
    assert reports["quality"].counts["captions"].came == count.kept
    kept = list(read_captions(tmp_path / "out" / "dedup", tmp_path / "out" / "quality"))
    assert len(kept) == reports["quality"].counts["captions"].kept >= 1
    assert {row.id for row in kept} <= {crop.id for crop in crops}
    assert f"quality: {len(kept):,} of {count.kept:,} captions" in capsys.readouterr().out


def test_a_failure_of_the_server_is_one_line_and_the_next_start_resumes(tmp_path, papers, capsys):
    with caption_server(lambda number, before: "500") as server:
        file = captioners(tmp_path, server)
        assert run(tmp_path, papers, "--captioners", file) == 1
        assert "--drop-failed" in capsys.readouterr().err.splitlines()[-1]  # progress may come before
        assert run(tmp_path, papers, "--captioners", file, "--drop-failed") == 0
    assert StageReport.read(tmp_path / "out" / "captions").counts["crops"].dropped["failed"] == 6


@pytest.mark.parametrize(
    "words",
    [
        ["--words", "50"],
        ["--discriminator", "."],
        ["--captioners", "{file}", "--threshold", "0.7"],
        ["--captioners", "none.yaml"],
        ["--captioners", "{file}", "--prompts", "{file}"],
        ["--captioners", "{file}", "--most-money", "0"],
        ["--captioners", "{file}", "--discriminator", "{folder}"],
        ["--captioners", "{keyless}"],
        ["--captioners", "{nowhere}"],
    ],
)
def test_options_that_cannot_be_used_are_refused_before_any_work(tmp_path, papers, capsys, words):
    file = tmp_path / "captioners.yaml"
    file.write_text("general: {url: 'http://localhost:1/v1', model: m}")
    files = {"file": file, "folder": tmp_path, "keyless": tmp_path / "keyless", "nowhere": tmp_path / "nowhere"}
    files["keyless"].write_text("general: {url: 'http://localhost:1/v1', api_key_env: NO_SUCH_KEY}")
    files["nowhere"].write_text("general: {url: 'localhost:1'}")
    assert run(tmp_path, papers, *[word.format(**files) for word in words]) == 2
    assert error_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_results_of_a_stage_that_is_gone_are_not_taken_for_those_of_the_new_one(tmp_path, papers, capsys):
    out = tmp_path / "out"
    with caption_server(lambda number, before: "well") as server:
        file = captioners(tmp_path, server)
        assert run(tmp_path, papers, "--captioners", file) == 0
        assert {path.name for path in out.iterdir() if path.is_dir()} == {*STAGES}
        asked = server.asked.total()
        for again, kept in (("captions", "quality"), ("routing", "captions")):
            shutil.rmtree(out / again)
            before = {path: path.read_bytes() for path in (out / kept).iterdir()}
            assert run(tmp_path, papers, "--captioners", file) == 1
            assert str(out / kept) in error_line(capsys.readouterr().err)
            assert {path: path.read_bytes() for path in (out / kept).iterdir()} == before
            for path in before:
                if not path.match(LEDGERS) and path.name != PLAN:
                    path.unlink()
            shutil.rmtree(out / "quality")
            assert run(tmp_path, papers, "--captioners", file) == 0
        assert server.asked.total() == 2 * asked  # once more where the answers were removed too
