"""The tables and the account that every stage of the caption pipeline writes."""

from dataclasses import replace

import pytest

from trainer.corpora.captions.crops import KINDS, Crop, crop_id, rounded
from trainer.corpora.captions.reports import REPORT, Count, StageReport
from trainer.corpora.captions.tables import part_path, parts_of, read_crops, read_part, write_part
from trainer.data.errors import DataError

PDF = "ab" * 32


def crop(number: int) -> Crop:
    box = rounded((10.0 + number, 20.004, 110.0, -0.001))
    kind = KINDS[number % len(KINDS)]
    return Crop(
        id=crop_id(PDF, number + 1, box, kind),
        pdf=PDF,
        document="a b/é.pdf",
        page=number + 1,
        page_size=(595.28, 841.89),
        box=box,
        kind=kind,
        label="图 2",
        caption="图 2: µV against t",
        context="above\n\nbelow",
        text="Time (s)",
        image=bytes([number]) * 50,
        format="png",
        width=7,
        height=5,
        dpi=144.0,
        found_by="embedded",
        licence="CC-BY-4.0",
        source="a journal",
    )


def test_parts_give_back_the_crops_in_order_with_or_without_images(tmp_path):
    crops = [crop(number) for number in range(150)]
    assert write_part(part_path(tmp_path, 0), crops[:130]) == 130
    assert write_part(part_path(tmp_path, 1), []) == 0
    assert write_part(part_path(tmp_path, 2), iter(crops[130:])) == 20
    assert list(read_crops(tmp_path)) == crops
    assert list(read_crops(tmp_path, images=False)) == [replace(one, image=b"") for one in crops]
    assert list(read_part(part_path(tmp_path, 0), only=[crops[3].id, crops[140].id])) == [crops[3]]


def test_the_same_crops_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_part(tmp_path / name, map(crop, range(70)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_or_corrupt_part_is_reported(tmp_path):
    write_part(part_path(tmp_path, 1), [crop(0)])
    with pytest.raises(DataError) as caught:
        parts_of(tmp_path)
    assert caught.value.faults[0].where == str(part_path(tmp_path, 0))
    part_path(tmp_path, 0).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError) as caught:
        list(read_crops(tmp_path))
    assert caught.value.faults[0].where == str(part_path(tmp_path, 0))


def test_an_id_is_of_the_region_and_not_of_the_file():
    one = crop(1)
    assert len(one.id) == 32
    assert one.id == crop_id(PDF, one.page, (one.box[0] + 0.001, *one.box[1:]), one.kind)
    others = {crop_id(PDF, 3, one.box, one.kind), crop_id(PDF, one.page, one.box, "figure"),
              crop_id("cd" * 32, one.page, one.box, one.kind)}  # fmt: skip
    assert len(others - {one.id}) == 3


def test_a_report_counts_everything_that_came(tmp_path):
    assert StageReport.read(tmp_path) is None
    crops = Count()
    crops.keep(3)
    crops.drop("blank", 2)
    other = Count()
    other.drop("small")
    crops.add(other)
    report = StageReport("layout", {"crops": crops}, {"pages": 4}, ["a.pdf: encrypted"])
    report.write(tmp_path)
    again = StageReport.read(tmp_path)
    assert again == report
    assert crops.to_json() == {"in": 6, "out": 3, "dropped": {"blank": 2, "small": 1}}
    crops.kept += 1
    with pytest.raises(AssertionError):
        report.write(tmp_path)
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(DataError):
        StageReport.read(tmp_path)
