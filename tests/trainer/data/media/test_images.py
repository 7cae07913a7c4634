"""Images against transformers' processors, and the rules for what those get wrong."""

from __future__ import annotations

import dataclasses
import io
import struct

import numpy as np
import pytest

from tests.trainer.data.media.image_files import (
    colours,
    exif_turned,
    ordinary,
    png16,
    rgb,
    saved,
    scientific,
    turned,
    wide,
)
from trainer.data.errors import DataError
from trainer.data.media import images
from trainer.data.media.images import DECODE_LIMIT, PatchRule, TileRule, decode, size_of

Image = pytest.importorskip("PIL.Image")
LIMIT = 1 << 26


def bomb(height: int, width: int) -> bytes:
    """A PNG of few bytes whose header claims more pixels."""
    return png16(np.zeros((1, 4, 1), np.uint16), 0, claimed=(height, width))


ORDINARY, TURNED, SCIENTIFIC = dict(ordinary()), dict(exif_turned()), dict(scientific())


@pytest.fixture(scope="module")
def published_patches():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": PatchRule.min_pixels, "longest_edge": PatchRule.max_pixels}
    return Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=PatchRule.mean, image_std=PatchRule.std)


@pytest.fixture(scope="module")
def published_tiles():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, image_mean=TileRule.mean, image_std=TileRule.std
    )


def assert_same_patches(data: bytes, found: dict, rule: PatchRule = PatchRule()) -> None:  # noqa: B008
    patches, grid = rule.prepare(decode(data, where="a", max_pixels=LIMIT))
    assert [1, *grid] == found["image_grid_thw"][0].tolist()
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches, found["pixel_values"])
    assert rule.tokens(*size_of(data)) * 4 == len(patches)


def test_forty_files_at_least_are_compared_with_published_processors():
    assert len(ORDINARY) >= 40
    assert len(TURNED) >= 11


@pytest.mark.parametrize("name", ORDINARY)
def test_patches_are_those_of_the_published_processor(name, published_patches):
    assert_same_patches(ORDINARY[name], published_patches(Image.open(io.BytesIO(ORDINARY[name]))))


@pytest.mark.parametrize("name", ORDINARY)
def test_tiles_are_those_of_the_published_processor(name, published_tiles):
    found = published_tiles(Image.open(io.BytesIO(ORDINARY[name])))
    tiles = TileRule().prepare(decode(ORDINARY[name], where="a", max_pixels=LIMIT))
    np.testing.assert_array_equal(tiles, np.stack(found["pixel_values"]))
    assert TileRule().tokens(*size_of(ORDINARY[name])) == 256 * len(tiles)


def test_grids_are_the_published_ones_for_many_sizes():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    random, patches, tiles = np.random.default_rng(0), PatchRule(), TileRule()
    for height, width in np.exp(random.uniform(0, 9.5, (4000, 2))).astype(int).tolist():
        columns_rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        assert tiles.grid(height, width) == columns_rows[::-1]
        if max(height, width) <= 200 * min(height, width):
            rows, columns = patches.grid(height, width)
            assert (rows * 16, columns * 16) == smart_resize(height, width, 32, 65_536, 16_777_216)


@pytest.mark.parametrize("name", TURNED)
def test_what_exif_turns_is_turned_as_from_a_path(name, published_patches):
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(TURNED[name])))
    assert_same_patches(TURNED[name], published_patches(upright))
    assert size_of(TURNED[name]) == upright.size[::-1]


def test_exif_behind_the_pixels_of_a_png_is_found():
    data = turned("PNG", 6)
    length, place = struct.unpack(">I", data[(at := data.index(b"eXIf")) - 4 : at])[0], at - 4
    chunk, rest = data[place : place + length + 12], data[:place] + data[place + length + 12 :]
    moved = rest[:-12] + chunk + rest[-12:]
    assert size_of(moved) == size_of(data) == (67, 41)
    np.testing.assert_array_equal(decode(moved, where="a", max_pixels=LIMIT), decode(data, where="a", max_pixels=LIMIT))


@pytest.mark.parametrize("name", SCIENTIFIC)
def test_a_wide_channel_is_stretched_where_published_code_loses_it(name, published_patches):
    data = SCIENTIFIC[name]
    lost = published_patches(Image.open(io.BytesIO(data)))["pixel_values"]
    assert lost.std() < 0.05  # white or black
    pixels = decode(data, where="a", max_pixels=LIMIT)
    assert (pixels == pixels[:, :, :1]).all()
    height, width = size_of(data)
    values = wide(height, width, "float64")
    low, high = np.quantile(values, images.QUANTILES, method="nearest")
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    assert abs(pixels[:, :, 0] - expected).max() <= 0.51
    assert len(np.unique(pixels)) > 100


def test_one_hot_pixel_does_not_flatten_a_wide_channel():
    values = wide(64, 64, "uint16")
    values[3, 5] = 65_535
    hot = decode(saved(Image.fromarray(values), "PNG"), where="a", max_pixels=LIMIT)
    assert hot[3, 5, 0] == 255
    assert hot.std() > 40


def test_few_bright_pixels_on_a_constant_ground_are_seen():
    values = np.full((64, 64), 7, np.uint16)
    values[3, 5] = 500
    pixels = decode(saved(Image.fromarray(values), "PNG"), where="a", max_pixels=LIMIT)[:, :, 0]
    assert pixels[3, 5] == 255
    assert pixels.sum() == 255


@pytest.mark.parametrize("value", [0, 300, 65_535])
def test_a_constant_wide_channel_is_black(value):
    data = saved(Image.fromarray(np.full((8, 8), value, np.uint16)), "PNG")
    assert not decode(data, where="a", max_pixels=LIMIT).any()


def test_floats_that_are_not_finite():
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decode(saved(Image.fromarray(values), "TIFF"), where="a", max_pixels=LIMIT)[:, :, 0]
    assert pixels[0, :3].tolist() == [0, 255, 0]
    assert pixels[-1, -1] == 255
    data = saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    assert not decode(data, where="a", max_pixels=LIMIT).any()


def test_a_transparent_value_of_a_wide_channel_is_white_and_does_not_count():
    values = wide(32, 32, "uint16")
    values[:8] = 60_000
    data = png16(values[:, :, None], 0, (b"tRNS", struct.pack(">H", 60_000)))
    pixels = decode(data, where="a", max_pixels=LIMIT)
    assert (pixels[:8] == 255).all()
    rest = decode(saved(Image.fromarray(values[8:]), "PNG"), where="a", max_pixels=LIMIT)
    np.testing.assert_array_equal(pixels[8:], rest)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_tiff_whose_white_is_zero_is_inverted(dtype):
    values = wide(20, 24, "uint16") if dtype == "uint16" else colours(20, 24)[:, :, 0]
    data = bytearray(saved(Image.fromarray(values), "TIFF"))
    dark = decode(bytes(data), where="a", max_pixels=LIMIT)
    tag = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    assert data[tag] == 1
    data[tag] = 0
    np.testing.assert_array_equal(decode(bytes(data), where="a", max_pixels=LIMIT), 255 - dark)


def test_a_resized_image_keeps_its_size_where_published_code_refuses_it():
    rule = PatchRule()
    rows, columns = rule.grid(45, 8922)
    assert (rows * 16, columns * 16) == (32, 8928)
    assert rule.grid(32, 8928) == (rows, columns)


@pytest.mark.parametrize(("height", "width"), [(10, 3000), (201, 1), (16, 4096)])
def test_a_long_strip_is_refused(height, width):
    with pytest.raises(DataError) as error:
        PatchRule().tokens(height, width, where="doc 3")
    assert (error.value.where, error.value.value, error.value.allowed) == ("doc 3", (height, width), 200)


@pytest.mark.parametrize("rule", [PatchRule(), TileRule()])
def test_a_side_of_zero_is_refused(rule):
    with pytest.raises(DataError) as error:
        rule.tokens(0, 5, where="doc 3")
    assert (error.value.where, error.value.value) == ("doc 3", (0, 5))


def test_more_pixels_than_allowed_are_not_decoded():
    data = bomb(10_000, 10_000)  # about as many as Pillow itself only warns of
    with pytest.raises(DataError) as error:
        decode(data, where="doc 3", max_pixels=1_000_000)
    assert (error.value.where, error.value.value, error.value.allowed) == ("doc 3", 100_000_000, 1_000_000)


def test_the_limit_of_pixels_alone_decides():
    data = bomb(20_000, 20_000)  # Pillow refuses as many by itself
    assert size_of(data) == (20_000, 20_000)
    with pytest.raises(DataError) as error:
        decode(data, where="a", max_pixels=DECODE_LIMIT)
    assert error.value.allowed == DECODE_LIMIT
    with pytest.raises(DataError) as error:
        decode(data, where="a", max_pixels=400_000_000)
    assert error.value.allowed is None  # past the limit: the file has no pixels
    assert Image.MAX_IMAGE_PIXELS is not None


BROKEN = {
    "nothing": b"",
    "text": b"<svg></svg>",
    "an icon": saved(rgb(64, 64), "ICO"),
    "postscript": saved(rgb(64, 64), "EPS"),
    "half a jpeg": saved(rgb(64, 64), "JPEG")[:900],
    "half a png": saved(rgb(64, 64), "PNG")[:3000],
    "a header only": saved(rgb(64, 64), "PNG")[:33],
    "half a tiff": saved(rgb(64, 64), "TIFF")[:3000],
    "half a webp": saved(rgb(64, 64), "WEBP")[:600],
    "a damaged png": saved(rgb(64, 64), "PNG").replace(b"IDAT", b"IDAX"),
    "no rows": png16(np.zeros((0, 4, 1), np.uint16), 0),
    "a bomb": bomb(40_000, 40_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(name):
    with pytest.raises(DataError) as error:
        decode(BROKEN[name], where="doc 3", max_pixels=LIMIT)
    assert error.value.where == "doc 3"
    assert len(error.value.lines) == 1
    assert "0x" not in repr(error.value.value)


def test_a_rule_may_have_other_numbers(published_patches):
    rule = PatchRule(min_pixels=3136, max_pixels=50_000, mean=(0.48, 0.45, 0.4), std=(0.26, 0.27, 0.28))
    data = ORDINARY["rgb jpeg"]
    size = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
    found = published_patches(Image.open(io.BytesIO(data)), size=size, image_mean=rule.mean, image_std=rule.std)
    assert_same_patches(data, found, rule)
    assert dataclasses.asdict(rule)["max_pixels"] == 50_000


def test_thumbnail_and_tiles_may_be_left_out():
    image = colours(100, 300)
    whole = TileRule().prepare(image)
    np.testing.assert_array_equal(TileRule(thumbnail=False).prepare(image), whole[:-1])
    assert TileRule(max_tiles=1).tiles(100, 300) == 1


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError) as error:
        decode(ORDINARY["bmp"], where="doc 3", max_pixels=LIMIT)
    assert (error.value.where, error.value.allowed) == ("doc 3", ".[media]")
