"""OpenCompass 0.5.4's own scorers, run as published.

`make test-peers` sets its environment up. Importing the package runs everything that it has, with fifty dependencies;
here each scorer's file is executed alone, with stand-ins for the registries, the base classes and the logger, which
compute nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.trainer.weights.peers.environments import PEERS, require

INSTALLED = PEERS / "opencompass"


class Registry:
    """Hands a class back unchanged; `register_module()` and `register_module('name')` are decorators."""

    def register_module(self, *_: object, **__: object) -> Any:
        return lambda registered: registered


class Base:
    def __init__(self, *_: object, **__: object) -> None:
        pass


def stand_ins() -> dict[str, types.ModuleType]:
    made: dict[str, types.ModuleType] = {}

    def add(name: str, folder: str | None = None, **members: object) -> None:
        made[name] = module = types.ModuleType(name)
        module.__dict__.update(members)
        module.__path__ = [str(INSTALLED / folder)] if folder else []

    registry = Registry()
    add("opencompass", "opencompass")
    add("opencompass.datasets", "opencompass/datasets")
    add("opencompass.datasets.base", BaseDataset=Base)
    add("opencompass.datasets.matbench", "opencompass/datasets/matbench")
    folders = "/LLM4Chem /LLM4Chem/utils /Mol_Instructions /opi /opi/utils /unconditional_molecule_generation"
    for folder in ("", *folders.split()):
        add("opencompass.datasets.SciReasoner" + folder.replace("/", "."), "opencompass/datasets/SciReasoner" + folder)
    add("opencompass.openicl", BaseEvaluator=Base, RougeEvaluator=Base)
    add("mmengine")
    add("mmengine.config", ConfigDict=dict)
    add("opencompass.openicl.icl_evaluator", BaseEvaluator=Base)
    add("opencompass.openicl.icl_evaluator.icl_base_evaluator", BaseEvaluator=Base)
    names = ("ICL_EVALUATORS", "LOAD_DATASET", "TEXT_POSTPROCESSORS", "DICT_POSTPROCESSORS")
    add("opencompass.registry", **dict.fromkeys(names, registry))
    log = logging.getLogger("opencompass")
    add("opencompass.utils", get_logger=lambda: log, get_data_path=lambda path, *_, **__: path)
    return made


@contextmanager
def published(name: str, **packages: types.ModuleType) -> Iterator[types.ModuleType]:
    """A module of opencompass.datasets; skips the test without the environment. packages: stand-ins for what it
    imports and this test does not use."""
    require("opencompass")
    before = {key: sys.modules.get(key) for key in sys.modules if key.split(".")[0] == "opencompass"}
    added = {**stand_ins(), **{key: value for key, value in packages.items() if not importlib.util.find_spec(key)}}
    sys.modules.update(added)
    sys.path.append(str(INSTALLED))
    try:
        yield importlib.import_module(f"opencompass.datasets.{name}")
    finally:
        sys.path.remove(str(INSTALLED))
        for key in [key for key in sys.modules if key.split(".")[0] == "opencompass" or key in added]:
            del sys.modules[key]
        sys.modules.update({key: module for key, module in before.items() if module is not None})
