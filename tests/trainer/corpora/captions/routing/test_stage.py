import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from reportlab.pdfgen.canvas import Canvas

from launch.cli import main
from tests.trainer.corpora.captions.describe.caption_server import caption_server
from tests.trainer.corpora.captions.routing.made import crop
from trainer.corpora.captions.reports import REPORT, StageReport
from trainer.corpora.captions.routing.routes import SCIENCE_CAPTIONER, Captioner, captioner, route
from trainer.corpora.captions.routing.stage import Options, captioners_of, read_routes, run_routing
from trainer.corpora.captions.routing.subjects import SCIENCE, SUBJECTS
from trainer.corpora.captions.tables import part_path, write_part
from trainer.data.errors import DataError

CHECKOUT = Path(__file__).resolve().parents[5]


@pytest.fixture
def crops(tmp_path):
    """Three parts of a stage before this one."""
    (tmp_path / "layout").mkdir()
    for part in range(3):
        write_part(part_path(tmp_path / "layout", part), (crop(part * 10 + number) for number in range(10)))
    return tmp_path / "layout"


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_crop_has_a_row_in_its_place_and_a_captioner(crops, tmp_path):
    report = run_routing(tmp_path / "out", crops, Options())
    rows = [*read_routes(tmp_path / "out")]
    assert [row.id for row in rows] == [crop(number).id for number in range(30)]
    assert [row.captioner for row in rows[:3]] == ["science", "general", "science"]
    assert rows[4].captioner == "general"  # without any text
    assert [row.subject for row in rows[:3]] == ["life", "other", "materials"]
    assert all(sum(row.probabilities) == pytest.approx(1, abs=1e-5) for row in rows)
    crops_count = report.counts["crops"]
    assert (crops_count.came, crops_count.kept, crops_count.dropped.total()) == (30, 30, 0)
    assert sum(report.facts["subjects"].values()) == sum(report.facts["captioners"].values()) == 30
    assert StageReport.read(tmp_path / "out") == report


def test_a_crop_without_text_has_the_subject_of_its_document(tmp_path):
    (tmp_path / "crops").mkdir()
    write_part(part_path(tmp_path / "crops", 0), [crop(0, 1), crop(4, 1), crop(1, 2), crop(4, 2)])
    run_routing(tmp_path / "out", tmp_path / "crops", Options())
    rows = [*read_routes(tmp_path / "out")]
    assert [row.subject for row in rows] == ["life", "life", "other", "other"]
    assert [row.captioner for row in rows] == ["science", "science", "general", "general"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_stage_resumes_with_the_same_bytes(crops, tmp_path, at):
    run_routing(tmp_path / "whole", crops, Options())

    def stop(state):
        if state.done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_routing(tmp_path / "out", crops, Options(), progress=stop)
    assert len([*(tmp_path / "out").glob("part-*")]) == at
    assert not (tmp_path / "out" / REPORT).exists()
    run_routing(tmp_path / "out", crops, Options())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer.corpora.captions.routing.model import TextModel
from trainer.corpora.captions.routing.stage import Options, run_routing

score, left = TextModel.score, int(sys.argv[3])
def killed(self, document):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, document)
TextModel.score = killed
run_routing(Path(sys.argv[1]), Path(sys.argv[2]), Options())
"""


@pytest.mark.slow
def test_a_killed_stage_resumes_with_the_same_bytes(crops, tmp_path):
    """`kill -9` in the midst of a part, after one, and at the last crop."""
    run_routing(tmp_path / "whole", crops, Options())
    for place in (0, 3, 10, 17, 29):
        out = tmp_path / f"out{place}"
        command = [sys.executable, "-c", KILLED, str(out), str(crops), str(place)]
        assert subprocess.run(command, cwd=CHECKOUT).returncode == -signal.SIGKILL
        run_routing(out, crops, Options())
        assert files_of(out) == files_of(tmp_path / "whole")


def test_the_command_routes_by_its_options(tmp_path, capsys):
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(300, 400), invariant=1)
    canvas.rect(40, 60, 200, 150)
    canvas.line(60, 80, 200, 180)
    canvas.drawString(40, 36, "Figure 1: growth of cells")
    canvas.save()
    words = ["captions", str(tmp_path / "out"), str(tmp_path / "a.pdf"), "--workers=1"]
    assert main([*words, "--route=all=science,other:0", "--route=science=science:0.5"]) == 0
    assert "routing: 1 of 1 crops" in capsys.readouterr().out
    assert [row.captioner for row in read_routes(tmp_path / "out" / "routing")] == ["all"]
    assert main(words) == 1  # of other captioners
    assert main([*words, "--route=art:1", "--route=art=art:1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_a_corrupt_table_is_reported(crops, tmp_path):
    run_routing(tmp_path / "out", crops, Options())
    part_path(tmp_path / "out", 1).write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        [*read_routes(tmp_path / "out")]
    assert caught.value.where == str(part_path(tmp_path / "out", 1))


def test_the_captioners_of_a_part_are_found_by_its_crops(crops, tmp_path):
    run_routing(tmp_path / "out", crops, Options())
    rows = [*read_routes(tmp_path / "out")]
    captioner_of = captioners_of(tmp_path / "out")(part_path(crops, 1))
    assert captioner_of == {row.id: row.captioner for row in rows[10:20]}
    assert set(captioner_of.values()) == {"science", "general"}


def test_a_finished_stage_refuses_other_settings(crops, tmp_path):
    first = run_routing(tmp_path / "out", crops, Options())
    assert run_routing(tmp_path / "out", crops, Options()) == first
    with pytest.raises(DataError) as caught:
        run_routing(tmp_path / "out", crops, Options(default="other"))
    assert caught.value.where == str(tmp_path / "out")


def test_each_of_several_captioners_gets_the_crops_of_its_route(tmp_path):
    """Two servers: the science one is asked about a figure of cells, the general one about a page of a web shop."""
    for name, text in (("a", "Figure 1: growth of cells after gene knockout in mice"), ("b", "Figure 1: login page")):
        canvas = Canvas(str(tmp_path / f"{name}.pdf"), pagesize=(400, 400), invariant=1)
        canvas.rect(40, 60, 200, 150, fill=name == "b")
        canvas.line(60, 80, 200, 180) if name == "a" else canvas.circle(300, 150, 40)
        canvas.drawString(40, 36, text)
        canvas.save()
    file = tmp_path / "captioners.yaml"
    words = ["captions", str(tmp_path / "out"), str(tmp_path / "a.pdf"), str(tmp_path / "b.pdf"), "--workers=1"]
    file.write_text("{x: {url: 'http://localhost:1/v1', model: m}, general: {url: 'http://localhost:1/v1'}}")
    assert main([*words, f"--captioners={file}"]) == 1  # no captioner for science
    with caption_server(lambda number, before: "well") as one, caption_server(lambda number, before: "well") as two:
        urls = {"science": one.url, "general": two.url}
        file.write_text(json.dumps({name: {"url": url, "backoff": 0.01} for name, url in urls.items()}))
        assert main([*words, f"--captioners={file}"]) == 0
        assert (one.asked.total(), two.asked.total()) == (1, 1)


def test_captioners_are_asked_in_order_and_by_their_own_thresholds():
    row = [0.0] * len(SUBJECTS)
    row[SUBJECTS.index("chemistry")], row[SUBJECTS.index("other")] = 0.45, 0.55
    chemist = Captioner("chemist", ("chemistry",), 0.4)
    assert route(row, "figure", [SCIENCE_CAPTIONER]) == "general"
    assert route(row, "figure", [chemist, SCIENCE_CAPTIONER]) == "chemist"
    assert route(row, "figure", [Captioner("chemist", ("chemistry",), 0.46)], "last") == "last"
    assert route(row, "formula", [SCIENCE_CAPTIONER]) == "science"
    assert route(row, "formula", [Captioner("pictures", ("other",), 0.6)]) == "general"


def test_a_captioner_is_written_as_one_word():
    assert captioner("science=science:0.5") == SCIENCE_CAPTIONER
    assert captioner("a.b-7=physics,chemistry:0.25") == Captioner("a.b-7", ("chemistry", "physics"), 0.25)
    assert captioner(str(SCIENCE_CAPTIONER)).subjects == SCIENCE
    for text in ("science", "a=art:0.5", "a=life:1.5", "a=life:x", "a=life", "=life:0.5", "a=:0.5", "a=life:0.5.1"):
        with pytest.raises(DataError) as caught:
            captioner(text)
        assert caught.value.value == text
