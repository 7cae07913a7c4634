"""The stage `dedup`: each figure once with its places, the rest by reason, the same bytes after any interruption."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.trainer.corpora.captions.dedup import drawn
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.dedup import looks
from trainer.corpora.captions.dedup.rows import BLANK, COPY, UNREADABLE, Decision, read_decisions
from trainer.corpora.captions.dedup.stage import run_dedup
from trainer.corpora.captions.reports import StageReport
from trainer.corpora.captions.tables import part_path, read_crops, write_part
from trainer.data.errors import DataError

RUN = """
import sys
from pathlib import Path
from trainer.corpora.captions.dedup.stage import run_dedup

run_dedup(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def save(directory: Path, parts: list[list[Crop]]) -> Path:
    directory.mkdir()
    for number, crops in enumerate(parts):
        write_part(part_path(directory, number), crops)
    return directory


def decided(directory: Path) -> dict[str, Decision]:
    return {one.id: one for one in read_decisions(directory)}


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60)
    return file.getvalue()


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    """A logo in six papers, another logo, blank crops, a broken one, tables and a caption."""
    first, other = drawn.logo(0, 300), drawn.logo(1, 300)
    blank = Image.new("RGB", (200, 100), (250, 250, 250))
    speck = blank.copy()
    speck.putpixel((50, 50), (0, 0, 0))
    table = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(table).text((20, 20), "1 2 3\n4 5 6", fill="black")
    changed = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(changed).text((20, 20), "1 2 3\n4 5 8", fill="black")
    pictures = [first.resize((side, side)) for side in (150, 300, 90, 220)]
    made = [drawn.crop_of(picture, number) for number, picture in enumerate([*pictures, other, blank, speck])]
    made += [drawn.crop_of_file(jpeg(first), first.size, 7), drawn.crop_of(first, 8), drawn.crop_of(blank, 9)]
    made += [drawn.crop_of_file(b"\x89PNG\r\n\x1a\nnothing", (9, 9), 10)]
    made += [drawn.crop_of(each, 11 + number, "table") for number, each in enumerate([table, changed, table])]
    return [*made, replace(drawn.crop_of(first, 14, "caption"), image=b"")]


def test_a_figure_is_kept_once_with_all_its_places(crops: list[Crop], tmp_path: Path) -> None:
    report = run_dedup(tmp_path / "out", save(tmp_path / "crops", [crops[:5], [], crops[5:]]))
    found = decided(tmp_path / "out")
    assert list(found) == [crop.id for crop in crops]
    largest = min(crops[number].id for number in (1, 7, 8))  # of 300 pixels a side
    places = [one for one in found.values() if one.of == largest]
    assert [one.id for one in places] == [crops[number].id for number in (0, 1, 2, 3, 7, 8)]
    assert [(one.pdf, one.page, one.box) for one in places] == [
        (crops[number].pdf, crops[number].page, crops[number].box) for number in (0, 1, 2, 3, 7, 8)
    ]
    assert [crop.id for crop in crops if found[crop.id].dropped == BLANK] == [crops[n].id for n in (5, 6, 9)]
    assert [crop.id for crop in crops if found[crop.id].dropped == UNREADABLE] == [crops[10].id]
    assert {found[crops[number].id].of for number in (11, 13)} == {min(crops[11].id, crops[13].id)}
    assert not found[crops[12].id].dropped  # one digit of its table differs
    assert not found[crops[14].id].dropped
    count = report.counts["crops"]
    assert (count.came, count.kept) == (15, 5)
    assert count.dropped == {COPY: 6, BLANK: 3, UNREADABLE: 1}
    kept = [crop for crop in crops if not found[crop.id].dropped]
    assert list(read_crops(tmp_path / "out")) == kept
    assert StageReport.read(tmp_path / "out") == report


def test_what_is_kept_does_not_depend_on_the_order(crops: list[Crop], tmp_path: Path) -> None:
    run_dedup(tmp_path / "one", save(tmp_path / "crops", [crops]))
    run_dedup(tmp_path / "other", save(tmp_path / "reversed", [crops[::-1][:7], crops[::-1][7:]]))
    assert decided(tmp_path / "one") == decided(tmp_path / "other")


def test_inputs_without_crops(tmp_path: Path) -> None:
    for number, parts in enumerate([[], [[]], [[], []]]):
        report = run_dedup(tmp_path / f"out{number}", save(tmp_path / f"crops{number}", parts))
        assert report.counts["crops"].came == 0
        assert list(read_crops(tmp_path / f"out{number}")) == []


def test_an_interrupted_stage_ends_with_the_same_bytes(
    crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in front of every rename of a file: what a killed process can leave, but for its temporary files."""
    source = save(tmp_path / "crops", [crops[:5], crops[5:10], crops[10:]])
    run_dedup(tmp_path / "whole", source)
    replaced, allowed = os.replace, 0

    def counted(*paths: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        replaced(*paths)

    for allowed in range(20):
        left = allowed
        monkeypatch.setattr(os, "replace", counted)
        try:
            run_dedup(tmp_path / "stopped", source)
        except KeyboardInterrupt:
            left = 1  # each start gets a file further
            continue
        break
    assert allowed > 3
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_stage_ends_with_the_same_bytes(crops: list[Crop], tmp_path: Path) -> None:
    source = save(tmp_path / "crops", [crops[:5], crops[5:10], crops[10:]])
    run_dedup(tmp_path / "whole", source)
    written = sorted(bytes_of(tmp_path / "whole"))
    for name in [*written, None]:  # killed as soon as each file is there
        process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "killed"), str(source)])
        while process.poll() is None:
            if name and (tmp_path / "killed" / name).exists():
                process.send_signal(signal.SIGKILL)
                process.wait()
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_corrupt_table_is_reported(crops: list[Crop], tmp_path: Path) -> None:
    source = save(tmp_path / "crops", [crops[:3]])
    run_dedup(tmp_path / "out", source)
    (tmp_path / "out/report.json").unlink()
    (tmp_path / "out/looks-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        run_dedup(tmp_path / "out", source)
    assert caught.value.where.endswith("looks-00000.parquet")


@pytest.fixture
def many_pixels(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(looks, "MAX_PIXELS", 1000)
    file = io.BytesIO()
    Image.new("L", (40, 40)).save(file, "PNG")
    return file.getvalue()


def test_an_image_of_too_many_pixels_is_not_decoded(many_pixels: bytes) -> None:
    with pytest.raises(looks.UnreadableImageError, match="1,000"):
        looks.decoded(many_pixels)
