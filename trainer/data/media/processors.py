"""The rule of images that a directory's image processor follows, as every version of transformers has written it.

Up to 4.x a processor is `preprocessor_config.json`; from 5.0 on a whole `Processor` writes it into
`processor_config.json` under `image_processor`, which 5.x reads first and 4.x not at all. Limits of the area are
`min_pixels` and `max_pixels`, and since 4.49 also `size`, whose "edges" are pixels too; where both are there,
transformers takes the former. What a file leaves out is the default of transformers' class, which is not the one of
Intern-S1. Videos have a file, or a section, of their own, which is not read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
SECTION = "image_processor"  # of the latter
Rule = PatchRule | TileRule
Facts = dict[str, Any]

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# Values that the rules have fixed: bicubic, of 255, for both.
FIXED: Facts = {
    "resample": 3, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "do_convert_rgb": True,
}  # fmt: skip
# What transformers' classes have where a file says nothing.
DEFAULTS: dict[type[Rule], Facts] = {
    PatchRule: {
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
        "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280,
    },
    TileRule: {
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "size": {"height": 384, "width": 384}, "min_patches": 1,
        "max_patches": 12,
    },
}  # fmt: skip
CLASSES = {PatchRule: "Qwen2VLImageProcessor", TileRule: "GotOcr2ImageProcessor"}
BACKENDS = ("Fast", "Pil")  # behind the name of a class, whose results are the same
TYPES = ("image_processor_type", "feature_extractor_type")
EDGES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
# Fields of a rule, by key.
NAMES = {
    PatchRule: {"min_pixels": "min_pixels", "max_pixels": "max_pixels"},
    TileRule: {"min_patches": "min_tiles", "max_patches": "max_tiles"},
}


def rule_of_processor(rule: Rule, directory: Path) -> Rule:
    """The rule with what the image processor of a directory says of it; the same rule where there is none.

    Raises: DataError for a processor of another class, a value that the rule does not have, sizes that are incomplete,
        or two files that differ.
    """
    found = [(path, prefix, facts) for path, prefix, facts in _files(directory) if facts is not None]
    if not found:
        return rule
    rules = [_with(rule, *one) for one in found]
    if rules[0] != rules[-1]:
        first, second = (path.name for path, *_ in found)
        remedy = f"remove the one that does not hold, {first} or {second}"
        text = f"{directory}: {first} and {second} have image processors that differ, and versions of transformers "
        text += f"read different ones; {remedy}"
        raise DataError(text, where=str(directory), value=(first, second), allowed=remedy)
    return rules[0]


def processor_files(directory: Path) -> dict[str, Facts]:
    """The files of a directory that have an image processor, by name. Raises DataError."""
    return {path.name: _object(path) or {} for path, _, facts in _files(directory) if facts is not None}


def processor_of_rule(rule: Rule) -> Facts:
    """The file for a rule, by the name that published directories have; transformers 5 takes it for the same class."""
    found: Facts = {"image_mean": list(rule.mean), "image_std": list(rule.std)}
    if isinstance(rule, PatchRule):
        found |= {
            "patch_size": rule.patch_size, "merge_size": rule.merge, "temporal_patch_size": rule.frames,
            "size": {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels},
        }  # fmt: skip
    else:
        found |= {
            "crop_to_patches": True, "min_patches": rule.min_tiles, "max_patches": rule.max_tiles,
            "size": {"height": rule.tile_size, "width": rule.tile_size},
        }  # fmt: skip
    return {"image_processor_type": f"{CLASSES[type(rule)]}Fast", **FIXED, **found}


def changed_processor(rule: Rule, found: Facts) -> Facts:
    """A file, or a section of one, changed so that it does what the rule says."""
    kept = {key: value for key, value in found.items() if key not in (*EDGES.values(), *TYPES)}
    return {**kept, **processor_of_rule(rule)}


def _files(directory: Path) -> list[tuple[Path, str, Facts | None]]:
    """(path, prefix of its keys, image processor) of the files that may have one, the one that 5.x prefers first."""
    nested, plain = directory / PROCESSOR, directory / PREPROCESSOR
    section = (_object(nested) or {}).get(SECTION)
    if section is not None and not isinstance(section, dict):
        raise _refused(nested, SECTION, section, "an object")
    return [(nested, f"{SECTION}.", section), (plain, "", _object(plain))]


def _object(path: Path) -> Facts | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        text = f"{path} cannot be read ({error}); repair or remove it"
        raise DataError(text, where=str(path), allowed="a JSON object") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a JSON object; repair or remove it", where=str(path), allowed="a JSON object")
    return found


def _with(rule: Rule, path: Path, prefix: str, found: Facts) -> Rule:
    facts = {key: value for key, value in found.items() if value is not None}
    kind = type(rule)
    _check_class(kind, path, prefix, facts)
    facts = _sized(kind, path, prefix, facts)
    required = dict(FIXED)
    if isinstance(rule, TileRule):
        required["size"] = {"height": rule.tile_size, "width": rule.tile_size}
    else:
        required |= {"patch_size": rule.patch_size, "merge_size": rule.merge, "temporal_patch_size": rule.frames}
    for key, value in required.items():
        has = facts.get(key, DEFAULTS[kind].get(key, value))
        if has != value:
            raise _refused(path, prefix + key, has, value, absent=key not in facts)
    facts = DEFAULTS[kind] | facts
    given: Facts = {field: facts[key] for key, field in NAMES[kind].items()}
    for key, field in NAMES[kind].items():
        if type(given[field]) is not int or given[field] < 1:
            raise _refused(path, prefix + key, given[field], "a whole number above 0")
    least, most = NAMES[kind]
    if facts[least] > facts[most]:
        raise _refused(path, prefix + least, facts[least], f"{most}={facts[most]} or less")
    for key in ("image_mean", "image_std"):
        given[key.removeprefix("image_")] = _three(path, prefix + key, facts[key])
    return dataclasses.replace(rule, **given)


def _check_class(kind: type[Rule], path: Path, prefix: str, facts: Facts) -> None:
    """Refuse another class: its keys mean other things, as `shortest_edge` does to CLIP's."""
    for key in TYPES:
        name = facts.get(key, CLASSES[kind])
        if name not in [CLASSES[kind] + backend for backend in ("", *BACKENDS)]:
            raise _refused(path, prefix + key, name, CLASSES[kind])


def _sized(kind: type[Rule], path: Path, prefix: str, facts: Facts) -> Facts:
    """The facts with the limits of the area under `min_pixels` and `max_pixels`, or with `size` as an object."""
    size = facts.get("size")
    if size is None:
        return facts
    if kind is TileRule and type(size) is int:
        return facts | {"size": {"height": size, "width": size}}
    if not isinstance(size, Mapping):
        raise _refused(path, f"{prefix}size", size, "an object")
    size = {key: value for key, value in size.items() if value is not None}
    if kind is TileRule:
        return facts | {"size": size}
    facts = {EDGES[key]: value for key, value in size.items() if key in EDGES} | facts
    missing = [key for key, name in EDGES.items() if name not in facts]
    if missing:
        raise _refused(path, f"{prefix}size", size, "shortest_edge and longest_edge, in pixels")
    return facts


def _three(path: Path, key: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    if not numbers or len(value) != 3 or not all(map(math.isfinite, value)):
        raise _refused(path, key, value, "three numbers")
    if key.endswith("std") and min(value) <= 0:
        raise _refused(path, key, value, "three numbers above 0")
    return tuple(float(one) for one in value)


def _refused(path: Path, key: str, value: Any, allowed: Any, *, absent: bool = False) -> DataError:
    works = allowed if isinstance(allowed, str) else json.dumps(allowed)
    has = f"is not there, which means {json.dumps(value)} to transformers" if absent else f"is {json.dumps(value)}"
    text = f"{path}: {key} {has}, but images of this model need {works}"
    return DataError(text, where=f"{path}, {key}", value=value, allowed=allowed)
