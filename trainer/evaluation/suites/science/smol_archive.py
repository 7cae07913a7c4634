"""SMolInstruct's archive, data.zip, unpacked: raw pairs of each task, and the wording in which each is asked.

    raw/SPLIT/TASK.jsonl            input, output: a text, or one text for each target
    sample/GROUP/SPLIT/TASK.json    template_name, samples: idx of the pair, template_id, target
    template/NAME/TASK.json         wordings of input and output, with <INPUT> and <OUTPUT>
    core_tag/TASK.json              the tags around an input and an output, or null

A script of the data set puts these together, which the library `datasets` does not run any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, read_rows
from trainer.evaluation.suite import SuiteError
from trainer.storage.json_text import read_json

GROUP, SPLIT = "instruction_tuning", "test"


def is_archive(directory: Path) -> bool:
    return (directory / "raw" / SPLIT).is_dir()


def read_archive(directory: Path, tasks: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The questions of `tasks` with their task; the rows have input and output.

    Raises SuiteError for files that are missing or damaged."""
    for task in tasks:
        raw = directory / "raw" / SPLIT / f"{task}.jsonl"
        pairs = list(read_rows(raw, "input", "output"))
        listed = directory / "sample" / GROUP / SPLIT / f"{task}.json"
        sampled = _read(listed, dict)
        wordings = _read(directory / "template" / str(sampled.get("template_name")) / f"{task}.json", list)
        tags = _read(directory / "core_tag" / f"{task}.json", dict)
        for number, sample in enumerate(sampled.get("samples") or [], 1):
            try:
                pair, wording = pairs[sample["idx"]], wordings[sample["template_id"]]
                output = pair.cells["output"]
                if isinstance(output, dict):
                    output = output[sample["target"]]
                cells = {
                    "input": wording["input"].replace("<INPUT>", _tagged(pair.text("input"), tags["input"])),
                    "output": wording["output"].replace("<OUTPUT>", _tagged(output, tags["output"])),
                }
            except (LookupError, TypeError, AttributeError, ValueError) as error:
                text = f"{listed}: sample {number} does not fit {raw.name}, its wordings and its tags: {error!r}"
                raise SuiteError(
                    text, where=f"{listed}:{number}", value=sample, allowed="data.zip as published"
                ) from None
            yield task, Row(listed, number, cells)


def _tagged(text: str, tags: Sequence[str | None]) -> str:
    left, right = tags
    return text if left is None else f"{left} {text} {right}"


def _read(path: Path, kind: type) -> Any:
    allowed = "a file of data.zip as published"
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        text = f"{path} cannot be read: {error}; unpack data.zip again"
        raise SuiteError(text, where=str(path), value=str(error), allowed=allowed) from None
    if not isinstance(found, kind):
        text = f"{path} does not have the form of {allowed}"
        raise SuiteError(text, where=str(path), value=type(found).__name__, allowed=allowed)
    return found
