"""The stage `layout` and its command: accounts, resuming, inputs that cannot be read."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pypdfium2
import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from launch.cli import main
from trainer.corpora.captions.guarded import Lost, run_guarded
from trainer.corpora.captions.inputs import find_inputs
from trainer.corpora.captions.layout.stage import DOCUMENTS, LEDGER, SPOOL, Options, run_layout
from trainer.corpora.captions.pipeline import run_pipeline
from trainer.corpora.captions.reports import StageReport
from trainer.corpora.captions.tables import read_crops
from trainer.data.errors import DataError

CHECKOUT = Path(__file__).resolve().parents[4]


def write_pdf(path: Path, boxes=1, *, pages=1, size=(300, 400), **options) -> Path:
    canvas = Canvas(str(path), pagesize=size, invariant=1, **options)
    for page in range(pages):
        for number in range(boxes):
            canvas.rect(40 + 10 * page, 40 + 90 * number, 200, 60, fill=1)
            canvas.drawString(40, 26 + 90 * number, f"Figure {number + 1}: box {number} of {path.stem}")
        canvas.showPage()
    canvas.save()
    return path


@pytest.fixture
def folder(tmp_path):
    """Five sound PDFs, and one of each kind that cannot be read."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        write_pdf(folder / f"{number}.pdf", number, pages=2)
    write_pdf(folder / "locked.pdf", encrypt=StandardEncryption("secret"))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(500))
    (folder / "empty.pdf").write_bytes(b"")
    write_pdf(folder / "vast.pdf", size=(20_000, 20_000))
    (folder / "copy.pdf").write_bytes((folder / "1.pdf").read_bytes())
    return folder


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_document_page_and_crop_is_accounted_for(folder, tmp_path):
    report = run_layout(tmp_path / "out", find_inputs([folder]), Options(workers=0))
    counts = {name: count.to_json() for name, count in report.counts.items()}
    assert counts["documents"] == {"in": 10, "out": 6, "dropped": {"broken": 2, "copy": 1, "encrypted": 1}}
    assert counts["pages"] == {"in": 11, "out": 10, "dropped": {"too large": 1}}
    assert counts["crops"]["in"] == counts["crops"]["out"] == 2 * (1 + 2 + 3 + 4)
    crops = list(read_crops(tmp_path / "out"))
    assert len({crop.id for crop in crops}) == len(crops) == 20
    assert [crop.document for crop in crops] == sorted(crop.document for crop in crops)
    assert {line.split(": ")[0].rpartition("/")[2] for line in report.lines} == {
        "broken.pdf", "copy.pdf", "empty.pdf", "locked.pdf", "vast.pdf"}  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out" / DOCUMENTS).read_text().splitlines()]
    assert [row["document"] for row in rows] == [str(path) for path in sorted(folder.iterdir())]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        DOCUMENTS, "part-00000.parquet", "report.json"]  # fmt: skip


def test_a_stage_resumes_after_any_document_with_the_same_bytes(folder, tmp_path, monkeypatch):
    inputs = find_inputs([folder])
    run_layout(tmp_path / "whole", inputs, Options(workers=0))
    whole = contents(tmp_path / "whole")
    from trainer.corpora.captions.layout import stage

    read, jobs = stage._read, []
    for stop in (1, 4, 9):

        def stopping(directory, dpi, job, report, stop=stop):
            jobs.append(job["number"])
            if len(jobs) > stop:
                raise KeyboardInterrupt
            return read(directory, dpi, job, report)

        monkeypatch.setattr(stage, "_read", stopping)
        jobs.clear()
        with pytest.raises(KeyboardInterrupt):
            run_layout(tmp_path / f"{stop}", inputs, Options(workers=0))
        monkeypatch.setattr(stage, "_read", read)
        assert (tmp_path / f"{stop}" / LEDGER).read_text().count("\n") == stop
        (tmp_path / f"{stop}" / SPOOL / "000000" / "000000007.parquet").write_bytes(b"torn")  # killed while writing it
        run_layout(tmp_path / f"{stop}", inputs, Options(workers=0))
        assert contents(tmp_path / f"{stop}") == whole


def test_several_parts_are_joined_in_order(folder, tmp_path, monkeypatch):
    inputs = find_inputs([folder])
    run_layout(tmp_path / "one", inputs, Options(workers=0))
    monkeypatch.setattr("trainer.corpora.captions.layout.stage.PART_BYTES", 1)
    run_layout(tmp_path / "many", inputs, Options(workers=0))
    assert len(list((tmp_path / "many").glob("part-*.parquet"))) == 4
    assert list(read_crops(tmp_path / "many")) == list(read_crops(tmp_path / "one"))


def test_licence_and_source_come_from_a_list(tmp_path):
    write_pdf(tmp_path / "a.pdf")
    rows = [{"path": "a.pdf", "license": "CC-BY-4.0", "source": "doi:1", "more": 1}, {"path": "gone.pdf"}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report = run_layout(tmp_path / "out", find_inputs([tmp_path / "list.jsonl"]), Options(workers=0))
    (crop,) = read_crops(tmp_path / "out")
    assert (crop.licence, crop.source) == ("CC-BY-4.0", "doi:1")
    assert report.counts["documents"].to_json() == {"in": 2, "out": 1, "dropped": {"unreadable": 1}}


@pytest.mark.parametrize("line", ["{", "[]", '{"path": 3}', '{"path": ""}', '{"path": "a", "licence": 4}', "{}"])
def test_a_line_that_is_not_a_document_is_reported(line, tmp_path):
    (tmp_path / "list.jsonl").write_text(f'{{"path": "a.pdf"}}\n\n{line}\n')
    with pytest.raises(DataError) as caught:
        find_inputs([tmp_path / "list.jsonl"])
    assert caught.value.where == f"{tmp_path / 'list.jsonl'}, line 3"


def test_other_inputs_or_options_are_refused(tmp_path, monkeypatch):
    write_pdf(tmp_path / "a.pdf")
    inputs, out = find_inputs([tmp_path / "a.pdf"]), tmp_path / "out"
    first = run_pipeline(out, inputs, Options(workers=0))
    assert run_pipeline(out, inputs, Options(workers=0)) == first
    with pytest.raises(DataError) as caught:
        run_pipeline(out, inputs, Options(dpi=99, workers=0))
    assert caught.value.where == str(out)
    write_pdf(tmp_path / "a.pdf", 3)
    with pytest.raises(DataError):
        run_pipeline(out, inputs, Options(workers=0))
    with pytest.raises(DataError) as caught:
        run_pipeline(tmp_path, inputs, Options(workers=0))
    assert caught.value.value == "a.pdf"
    assert not (tmp_path / "lock").exists()
    monkeypatch.setattr("trainer.corpora.captions.pipeline.find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        run_pipeline(tmp_path / "new", inputs, Options(workers=0))
    assert caught.value.value == ("pypdfium2", "pillow", "imagehash")


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_a_directory_of_something_else_is_left_as_it_was(text, tmp_path):
    write_pdf(tmp_path / "a.pdf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text(text)
    with pytest.raises(DataError):
        run_pipeline(tmp_path / "out", find_inputs([tmp_path / "a.pdf"]), Options(workers=0))
    assert contents(tmp_path / "out") == {"plan.json": text.encode()}


def test_an_output_that_is_a_file_and_a_wrong_list_are_refused_before_any_work(tmp_path, capsys):
    pdf = write_pdf(tmp_path / "a.pdf")
    (tmp_path / "list.jsonl").write_text('{"path": "a\\u0000.pdf"}')
    assert main(["captions", str(pdf), str(pdf)]) == 2
    assert main(["captions", str(tmp_path / "out"), str(tmp_path / "list.jsonl")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_is_written_with_its_bytes(tmp_path):
    folder = os.fsencode(tmp_path)
    write_pdf(tmp_path / "a.pdf")
    os.rename(tmp_path / "a.pdf", folder + b"/\xff.pdf")
    Path(os.fsdecode(folder + b"/\xfe.pdf")).write_bytes(b"no PDF")
    run_pipeline(tmp_path / "out", find_inputs([tmp_path]), Options(workers=0))
    (crop,) = read_crops(tmp_path / "out" / "layout")
    assert crop.document == str(tmp_path / "\\xff.pdf")
    (line,) = StageReport.read(tmp_path / "out" / "layout").lines
    assert line.startswith(str(tmp_path / "\\xfe.pdf"))


def test_a_page_that_cannot_be_drawn_costs_its_document_alone(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_pdf(tmp_path / f"{name}.pdf")
    draw, drawn = pypdfium2.PdfPage.render, []

    def failing(page, **options):
        drawn.append(page)
        if len(drawn) == 1:
            raise pypdfium2.PdfiumError("no bitmap")
        return draw(page, **options)

    monkeypatch.setattr(pypdfium2.PdfPage, "render", failing)
    report = run_layout(tmp_path / "out", find_inputs([tmp_path]), Options(workers=0))
    assert report.counts["documents"].to_json() == {"in": 2, "out": 1, "dropped": {"broken": 1}}


def test_a_stage_killed_just_after_its_report_leaves_nothing_more(folder, tmp_path, monkeypatch):
    inputs = find_inputs([folder])
    run_layout(tmp_path / "whole", inputs, Options(workers=0))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_layout(tmp_path / "out", inputs, Options(workers=0))
    run_layout(tmp_path / "out", inputs, Options(workers=0))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def start_odd():
    def task(job, report):
        if job == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if job == "hang":
            time.sleep(600)
        return job.upper()

    return task


def test_a_job_that_crashes_or_hangs_does_not_end_the_others():
    jobs = ["a", "crash", "b", "hang", "c"]
    found = dict(run_guarded(start_odd, jobs, 1, 12.0))
    assert {place: value for place, value in found.items() if isinstance(value, str)} == {0: "A", 2: "B", 4: "C"}
    assert isinstance(found[1], Lost)
    assert (found[1].reason, found[3].reason) == ("crashed", "deadline")


def test_the_command_is_killed_and_resumes(folder, tmp_path, capsys):
    """`kill -9` in the middle, and then the same command: the same bytes as in one go."""
    words = ["captions", str(tmp_path / "killed"), str(folder), "--workers=1", "--dpi=72"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, "-m", "launch.cli", *words], env=environment, start_new_session=True)
    ledger = tmp_path / "killed" / "layout" / LEDGER
    while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while main(words) != 0:  # until the processes of the killed one have ended
        assert time.monotonic() < deadline
        time.sleep(0.2)
    shown = capsys.readouterr()
    assert "6 of 10 documents" in shown.out
    assert "locked.pdf" in shown.err
    assert main(["captions", str(tmp_path / "whole"), str(folder), "--workers=1", "--dpi=72"]) == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole == killed
    assert StageReport.read(tmp_path / "whole" / "layout") is not None


def test_large_pages_are_rendered_within_bounds(tmp_path):
    path = write_pdf(tmp_path / "poster.pdf", size=(9000, 9000))
    document = pypdfium2.PdfDocument(path)
    page = document[0]
    for place in page.get_objects():
        place.transform(pypdfium2.PdfMatrix(30, 0, 0, 30, 0, 0))
    page.gen_content()
    file = io.BytesIO()
    document.save(file)
    path.write_bytes(file.getvalue())
    run_layout(tmp_path / "out", find_inputs([path]), Options(dpi=300, workers=0))
    (crop, *_) = read_crops(tmp_path / "out")
    assert crop.width * crop.height <= 1.01 * (1 << 24)
    assert crop.dpi < 300
    assert crop.width == pytest.approx((crop.box[2] - crop.box[0]) * crop.dpi / 72, rel=0.01)


HEAVY = """
import sys
from launch.cli import main
main(["--help"])
import launch.corpora.captions
heavy = {"torch", "pypdfium2", "pyarrow", "numpy", "PIL", "imagehash"} & {*sys.modules}
sys.exit(str(heavy) if heavy else 0)
"""


def test_the_command_line_is_light():
    done = subprocess.run([sys.executable, "-c", HEAVY], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
