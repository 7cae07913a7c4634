"""SArena-Icon: images compared by an independent library's figures, drawings rendered and compared."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.evaluation.suites.runs import PIXEL, answered, images_of, items_of, suite, write_lines
from trainer.evaluation.scorers.drawing.compare import mean_square, signal_to_noise, similarity, svg_in
from trainer.evaluation.suite import SuiteError
from trainer.evaluation.suites.vision import drawing

SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect x="1" y="1" width="2" height="2" fill="{}"/></svg>'
)


def pictures() -> tuple[Any, Any]:
    rows, columns = np.mgrid[0:48, 0:64]
    first = np.stack([rows * 5, columns * 4, (rows * columns) % 256], axis=-1).astype(np.uint8)
    second = first.copy()
    second[10:30, 20:40] = 255 - second[10:30, 20:40]
    second[:, :, 1] = np.roll(second[:, :, 1], 3, axis=1)
    return first, second


# of scikit-image 0.26.0: structural_similarity(win_size=11, channel_axis=-1, sigma=1.5), peak_signal_noise_ratio and
# mean_squared_error
SSIM, PSNR, MSE = SCIKIT_IMAGE = (0.6322137027796876, 14.489017943193577, 2313.015625)


def test_images_are_compared_as_scikit_image_does() -> None:
    first, second = pictures()
    assert similarity(first, second) == pytest.approx(SSIM, abs=1e-9)
    assert mean_square(first, second) == pytest.approx(MSE, abs=1e-9)
    assert signal_to_noise(mean_square(first, second)) == pytest.approx(PSNR, abs=1e-9)
    assert similarity(first, first) == pytest.approx(1)
    assert signal_to_noise(mean_square(first, first)) == 100


@pytest.mark.slow
def test_scikit_image_gives_the_stored_figures() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pictures()
    options = {"win_size": 11, "channel_axis": -1, "sigma": 1.5}
    found = [metrics.structural_similarity(first, second, **options)]
    found += [metrics.peak_signal_noise_ratio(first, second), metrics.mean_squared_error(first, second)]
    assert found == pytest.approx(SCIKIT_IMAGE, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "svg"),
    [
        ("```svg\n<svg>1</svg>\n```\n```svg\n<svg>2</svg>\n```", "<svg>2</svg>"),
        ("Here: <svg a='1'><svg/></svg> done", "<svg a='1'><svg/></svg>"),
        ("<svg unfinished", "<svg unfinished"),
        (" none ", "none"),
    ],
)
def test_the_drawing_is_found_in_the_answer(answer: str, svg: str) -> None:
    assert svg_in(answer) == svg


def write_icons(directory: Path, image: bytes) -> None:
    icons = directory / "Icon"
    said = [{"value": "Which?\nA: dot B: line"}, {"value": "A: dot"}]
    write_lines(icons / "understanding/sarena_un.jsonl", [{"id": 1, "conversations": said}])
    asked = [{"id": 1, "conversations": [{"value": "<image>\nDraw it."}]}]
    for task in ("text2svg", "img2svg"):
        write_lines(icons / f"generation/{task}.jsonl", asked)
    for edit in drawing.EDITS:
        write_lines(icons / f"edit/{edit}.jsonl", asked)
    for folder in ("generation", *(f"edit/data/{edit}" for edit in drawing.EDITS)):
        (icons / folder / "images").mkdir(parents=True)
        (icons / folder / "images/1.png").write_bytes(image)


def test_files_are_read_and_checked(tmp_path: Path) -> None:
    write_icons(tmp_path, base64.b64decode(PIXEL))
    items = items_of("SArena-Icon", tmp_path)
    assert len(items) == 3 + len(drawing.EDITS)
    assert [len(images_of(item)) for item in items[1:3]] == [0, 1]
    assert suite("SArena-Icon").score(items[0], "A, of course", None) == {"correct": True, "parsed": True}
    (tmp_path / "Icon/edit/data/flip/images/1.png").unlink()
    with pytest.raises(SuiteError) as fault:
        [*suite("SArena-Icon").read(tmp_path)]
    assert fault.value.where == str(tmp_path / "Icon/edit/data/flip/images/1.png")


@pytest.fixture
def rendered() -> Iterator[bytes]:
    pytest.importorskip("cairosvg", reason="pip install -e '.[evaluate]' brings cairosvg", exc_type=ImportError)
    import io

    from trainer.evaluation.scorers.drawing.worker import render

    target = io.BytesIO()
    render(SQUARE.format("red")).save(target, "PNG")
    yield target.getvalue()
    drawing.RENDERER.close()


def test_drawings_are_rendered_and_compared(tmp_path: Path, rendered: bytes) -> None:
    write_icons(tmp_path, rendered)
    items = [item for item in items_of("SArena-Icon", tmp_path) if item.meta["task"] != "edit"]
    same = answered("SArena-Icon", items, lambda item: "```svg\n" + SQUARE.format("#ff0000") + "\n```")
    assert same.value == pytest.approx(100)
    assert same.metrics["img2svg psnr"] == 100
    assert same.metrics["text2svg rendered"] == 100
    other = answered("SArena-Icon", items, lambda item: SQUARE.format("blue"))
    assert 10 < other.value < 100
    # a quarter of the pixels differs in two of three channels by 255
    assert other.metrics["img2svg mse"] == pytest.approx(255**2 / 6, rel=0.02)
    broken = answered("SArena-Icon", items, lambda item: "<svg><rect</svg>")
    assert broken.metrics["img2svg rendered"] == 0
    assert broken.value < other.value


def test_a_drawing_reads_no_files(tmp_path: Path, rendered: bytes) -> None:
    from trainer.evaluation.scorers.drawing.worker import render

    (tmp_path / "secret.png").write_bytes(rendered)
    link = f'<image width="4" height="4" href="file://{tmp_path}/secret.png"/></svg>'
    shown = render(SQUARE.format("white").replace("</svg>", link))
    assert shown is None or np.asarray(shown).min() == 255
