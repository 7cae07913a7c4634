import pytest

from tests.trainer.corpora.captions.routing.made import crop
from trainer.corpora.captions.reports import REPORT, StageReport
from trainer.corpora.captions.routing.routes import SCIENCE_CAPTIONER, Captioner, captioner, route
from trainer.corpora.captions.routing.stage import CaptionerOf, Options, read_routes, run_routing
from trainer.corpora.captions.routing.subjects import SCIENCE, SUBJECTS
from trainer.corpora.captions.tables import part_path, write_part
from trainer.data.errors import DataError


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


def test_a_corrupt_table_is_reported(crops, tmp_path):
    run_routing(tmp_path / "out", crops, Options())
    part_path(tmp_path / "out", 1).write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        [*read_routes(tmp_path / "out")]
    assert caught.value.where == str(part_path(tmp_path / "out", 1))


def test_the_captioner_of_a_crop_is_found_in_any_order(crops, tmp_path):
    run_routing(tmp_path / "out", crops, Options())
    wanted = {row.id: row.captioner for row in read_routes(tmp_path / "out")}
    captioner_of = CaptionerOf(tmp_path / "out")
    for number in (0, 5, 12, 29, 3, 11):
        assert captioner_of(crop(number)) == wanted[crop(number).id]
    with pytest.raises(DataError) as caught:
        captioner_of(crop(30))
    assert caught.value.value == crop(30).id


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
