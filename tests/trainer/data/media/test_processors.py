"""The rule of a directory's image processor, in files as versions of transformers write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule
from trainer.data.media.processors import rule_of_processor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
COMMON = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [*MEAN],
    "image_std": [*STD], "resample": 3, "rescale_factor": 0.00392156862745098,
}  # fmt: skip
QWEN = COMMON | {
    "image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "patch_size": 16, "temporal_patch_size": 2,
}  # fmt: skip
EDGES, PIXELS = {"longest_edge": 4096, "shortest_edge": 1024}, {"max_pixels": 4096, "min_pixels": 1024}
OF_FAST = {
    "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
    "disable_grouping": None, "do_center_crop": None, "do_pad": None, "input_data_format": None, "pad_size": None,
    "return_tensors": None,
}  # fmt: skip
FAST = {"image_processor_type": "Qwen2VLImageProcessorFast", **OF_FAST}
VIDEO = {"video_processor_type": "Qwen3VLVideoProcessor", "size": {"longest_edge": 786432, "shortest_edge": 131072}}
PLAIN, NESTED = "preprocessor_config.json", "processor_config.json"
# What `save_pretrained` of (min_pixels=1024, max_pixels=4096, patch_size=16) wrote
PATCHES: dict[str, dict[str, Any]] = {
    "4.46.3": {PLAIN: QWEN | PIXELS | {"size": PIXELS}},
    "4.52.4": {PLAIN: QWEN | PIXELS | {"size": EDGES}},
    "4.57.3 fast": {PLAIN: QWEN | FAST | PIXELS | {"size": EDGES}, "video_preprocessor_config.json": VIDEO},
    "4.57.3 fast, by size": {PLAIN: QWEN | FAST | {"max_pixels": None, "min_pixels": None, "size": EDGES}},
    "5.2.0": {NESTED: {"image_processor": QWEN | PIXELS | {"size": EDGES}, "video_processor": VIDEO}},
    "5.23.0": {NESTED: {"image_processor": QWEN | {"size": EDGES}, "video_processor": VIDEO}},
    "5.23.0 over 4.57.3": {
        NESTED: {"image_processor": QWEN | {"size": EDGES}},
        PLAIN: QWEN | FAST | PIXELS | {"size": EDGES},
    },
}
GOT = COMMON | {
    "crop_to_patches": False, "image_processor_type": "GotOcr2ImageProcessor", "max_patches": 6, "min_patches": 2,
    "size": {"height": 448, "width": 448},
}  # fmt: skip
OF_INTERNVL = {"image_seq_length": 256, "processor_class": "InternVLProcessor"}
TILES: dict[str, dict[str, Any]] = {
    "4.57.3": {PLAIN: GOT, NESTED: OF_INTERNVL},
    "4.57.3 fast": {PLAIN: GOT | OF_FAST | {"image_processor_type": "GotOcr2ImageProcessorFast"}, NESTED: OF_INTERNVL},
    "5.23.0": {NESTED: {"image_processor": GOT, **OF_INTERNVL}},
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("version", PATCHES)
def test_limits_of_the_area_are_those_of_transformers_own_reader(tmp_path, version):
    found = rule_of_processor(PatchRule(), write(tmp_path, PATCHES[version]))
    assert found == PatchRule(min_pixels=1024, max_pixels=4096, mean=MEAN, std=STD)
    read = AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size
    assert (found.min_pixels, found.max_pixels) == (read["shortest_edge"], read["longest_edge"])


@pytest.mark.parametrize("version", TILES)
def test_tiles_are_cut_although_the_file_says_that_they_are_not(tmp_path, version):
    """InternVL's processor passes crop_to_patches=True whatever its file has."""
    expected = TileRule(min_tiles=2, max_tiles=6, mean=MEAN, std=STD)
    assert rule_of_processor(TileRule(), write(tmp_path, TILES[version])) == expected


def test_files_of_the_installed_version(tmp_path):
    assert rule_of_processor(PatchRule(), tmp_path) == PatchRule()  # none
    Qwen2VLImageProcessorPil(patch_size=16, min_pixels=2048, max_pixels=8192).save_pretrained(tmp_path)
    assert rule_of_processor(PatchRule(), tmp_path) == PatchRule(min_pixels=2048, max_pixels=8192, mean=MEAN, std=STD)
    GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, max_patches=4).save_pretrained(tmp_path)
    assert rule_of_processor(TileRule(), tmp_path) == TileRule(max_tiles=4, mean=MEAN, std=STD)


@pytest.mark.parametrize("given", [{"max_pixels": 16384}, {}, {"size": EDGES}, {"size": EDGES, "max_pixels": 8192}])
def test_what_a_file_leaves_out_is_the_default_of_transformers(tmp_path, given):
    write(tmp_path, {PLAIN: {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16} | given})
    read = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = PatchRule(
        min_pixels=read.size["shortest_edge"], max_pixels=read.size["longest_edge"],
        mean=tuple(read.image_mean), std=tuple(read.image_std),
    )  # fmt: skip
    assert rule_of_processor(PatchRule(), tmp_path) == expected


@pytest.mark.parametrize(
    ("rule", "changes", "key", "value"),
    [
        (PatchRule(), {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type", "CLIPImageProcessor"),
        (PatchRule(), {"feature_extractor_type": "CLIPFeatureExtractor"}, "feature_extractor_type",
         "CLIPFeatureExtractor"),
        (PatchRule(), {"size": {"longest_edge": 4096}}, "size", {"longest_edge": 4096}),
        (PatchRule(), {"size": PIXELS}, "size", PIXELS),  # transformers refuses it too
        (PatchRule(), {"size": 448}, "size", 448),
        (PatchRule(), {"patch_size": None}, "patch_size", 14),
        (PatchRule(), {"min_pixels": 8192}, "min_pixels", 8192),
        (PatchRule(), {"min_pixels": 0}, "min_pixels", 0),
        (PatchRule(), {"image_mean": 0.5}, "image_mean", 0.5),
        (TileRule(), {"size": {"height": 384, "width": 384}}, "size", {"height": 384, "width": 384}),
        (TileRule(), {"max_patches": "12"}, "max_patches", "12"),
        (TileRule(), {"min_patches": 7}, "min_patches", 7),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_rule_does_not_have_is_refused_by_its_key(tmp_path, rule, changes, key, value, nested):
    facts = (QWEN | {"size": EDGES} if isinstance(rule, PatchRule) else GOT) | changes
    write(tmp_path, {NESTED: {"image_processor": facts}} if nested else {PLAIN: facts})
    with pytest.raises(DataError) as error:
        rule_of_processor(rule, tmp_path)
    where = f"{tmp_path / NESTED}, image_processor.{key}" if nested else f"{tmp_path / PLAIN}, {key}"
    assert (error.value.where, error.value.value) == (where, value)


def test_two_files_that_differ_and_what_is_not_an_object_are_refused(tmp_path):
    write(tmp_path, PATCHES["5.23.0 over 4.57.3"] | {PLAIN: QWEN | {"size": EDGES | {"longest_edge": 8192}}})
    with pytest.raises(DataError) as error:
        rule_of_processor(PatchRule(), tmp_path)
    assert (error.value.where, error.value.value) == (str(tmp_path), (NESTED, PLAIN))
    for name, content, where in ((PLAIN, [], PLAIN), (NESTED, {"image_processor": 1}, f"{NESTED}, image_processor")):
        write(tmp_path, {PLAIN: QWEN, NESTED: {}} | {name: content})
        with pytest.raises(DataError) as error:
            rule_of_processor(PatchRule(), tmp_path)
        assert error.value.where == str(tmp_path / where)


def test_an_edge_of_448_may_be_one_number(tmp_path):
    write(tmp_path, {PLAIN: GOT | {"size": 448}})
    assert rule_of_processor(TileRule(), tmp_path).max_tiles == 6
