"""A suite on rows of the tests' own, and `octavo evaluate` in a process that knows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.evaluation.files import find_file, read_rows
from trainer.evaluation.suite import Item, Suite, mean_of


def read(directory: Path) -> Iterator[Item]:
    for row in read_rows(find_file(directory, "rows.jsonl"), "id", "question"):
        yield Item(row.text("id"), [{"role": "user", "content": row.text("question")}], None, {"category": "c"})


OWN = Suite(
    "Own-Rows", "tests", "share of answers with an e, %", "these tests", "rows.jsonl: one question a line", 50.0,
    read=read, score=lambda item, answer, verdict: {"right": "e" in answer, "parsed": bool(answer)},
    summarise=mean_of("right"),
)  # fmt: skip
JUDGED = Suite(
    "Judged", "tests", "share that the judge likes, %", "these tests", "rows.jsonl", read=read,
    judge=lambda item, answer: [{"role": "user", "content": f"{item.id} {answer}"}] if item.id != "q0" else None,
    score=lambda item, answer, verdict: {"right": verdict == "yes"}, summarise=mean_of("right"),
)  # fmt: skip
SUITES = (OWN, JUDGED)


def write_rows(data: Path, count: int, suite: Suite = OWN) -> Path:
    (data / suite.folder).mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"q{n}", "question": f"question number {n} about"} for n in range(count)]
    (data / suite.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def start(*words: object) -> subprocess.Popen[str]:
    """`octavo evaluate WORDS` in a process of its own."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored behind a shell's `&`
        "import sys; import launch.serving.evaluate as command; from tests.launch.serving.own_suite import SUITES; "
        "command.SUITES = SUITES; from launch.cli import main; sys.exit(main(['evaluate', *sys.argv[1:]]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
