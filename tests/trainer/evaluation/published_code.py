"""Prints what published code says of the answers in scorers/rows_choices.py and suites/rows_signals.py, by hand.

python -m tests.trainer.evaluation.published_code FOLDER

FOLDER holds clones: VLMEvalKit (open-compass, e8e78f05), MMLU-Pro (TIGER-AI-Lab, f418b11), MMMU (MMMU-Benchmark,
bb0b95a) and TimeOmni (OpenTSLab, 4d4a9f4). Of each file the functions named here are run, without its imports. Exits
with 1 where these store something else.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import string
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainer.evaluation.scorers.rows_choices import ANSWERS, OPTIONS
from tests.trainer.evaluation.suites import rows_signals as signals


def functions(path: Path, *names: str) -> Mapping[str, Any]:
    """The functions and constants of these names in a file, wherever they are defined in it.

    They find the modules that the files import, and in place of `random` one that draws nothing.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            found.append((node.name, node))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in names:
            found.append((node.targets[0].id, node))  # type: ignore[arg-type]
    if sorted(name for name, _ in found) != sorted(names):
        raise SystemExit(f"{path} has not each of {', '.join(names)} once")
    nothing = types.SimpleNamespace(choice=lambda options: None)
    space: dict[str, Any] = {"re": re, "os": os, "string": string, "cp": copy, "np": np, "random": nothing}
    space |= {name: getattr(typing, name) for name in ("Any", "Dict", "List")}
    exec(compile(ast.Module([node for _, node in found], []), str(path), "exec"), space)
    return space


def letters(folder: Path) -> list[tuple[str, str | None, str, str | None, str | None]]:
    kit = folder / "VLMEvalKit/vlmeval"
    names = ("_VERBOSE_ANSWER_RE", "can_infer_option", "can_infer_text", "can_infer")
    option = functions(kit / "utils/matching_util.py", *names)["can_infer"]
    name = "extract_characters_regex"
    several = _of_class(kit / "dataset/image_mcq.py", "XLRSBench", name)
    mmlu = functions(folder / "MMLU-Pro/compute_accuracy.py", "extract_answer", "extract_again", "extract_final")
    mmmu = functions(folder / "MMMU/mmmu-pro/evaluate.py", "parse_multi_choice_response")
    return [
        (
            answer,
            option(answer, dict(OPTIONS)) or None,
            "".join(sorted(several(answer))),
            mmlu["extract_answer"](answer, "l2"),
            mmmu["parse_multi_choice_response"](answer, [*OPTIONS], OPTIONS),
        )
        for answer, *_ in ANSWERS
    ]


def _of_class(path: Path, owner: str, name: str) -> Any:
    """A static method of one class, of a name that several classes have."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            (method,) = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == name)
            method.decorator_list = []
            space: dict[str, Any] = {"re": re}
            exec(compile(ast.Module([method], []), str(path), "exec"), space)
            return space[name]
    raise SystemExit(f"{path} has no class {owner}")


def series(folder: Path) -> tuple[list[float], dict[str, list[float]]]:
    names = ("DETECTION_DICT", "classification_eval", "detect", "extract_predicted_times", "detection_eval")
    code = functions(folder / "TimeOmni/eval_benchmark.py", *names)
    rows = [
        {"generated_text": answer, "gt_result": result}
        for answer, result in zip(signals.WORDS.split("|"), signals.ONE_OR_MORE, strict=True)
    ]
    found = code["classification_eval"](rows)
    classes = [float(found[name]) for name in ("accuracy", "uar", "f1_score")]
    rows = [
        {"generated_text": answer, "gt_result": result}
        for answer, result in zip(signals.SEEN.split("|") * 2, signals.TIMES, strict=True)
    ]
    figures = ("accuracy", "f1_score", "success_rate", "mean_relative_error", "median_relative_error")
    events = {}
    for name in signals.EVENTS:
        found = code["detection_eval"](rows, name, "event detection")
        events[name] = [float(found[figure]) for figure in figures]
    return classes, events


def main(folder: Path) -> int:
    rows = letters(folder)
    classes, events = series(folder)
    print("ANSWERS =", *(f"    {row!r}," for row in rows), sep="\n")
    print("CLASSES =", json.dumps(classes))
    print("EVENTS =", json.dumps(events, indent=4))
    wrong = [f"{row} is stored as {stored}" for row, stored in zip(rows, ANSWERS, strict=True) if row != stored]
    if not np.allclose(classes, signals.CLASSES, rtol=0, atol=1e-12):
        wrong.append(f"CLASSES is stored as {signals.CLASSES}")
    for name, figures in events.items():
        if not np.allclose(figures, signals.EVENTS[name], rtol=0, atol=1e-12):
            wrong.append(f"EVENTS of {name} is stored as {signals.EVENTS[name]}")
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
