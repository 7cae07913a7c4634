"""A process whose library prints: Python's and C's standard output, before and in an answer."""

from __future__ import annotations

import os
from typing import Any

from trainer.evaluation.scorers.worker import serve


def answer(question: Any) -> Any:
    print("a stray line")
    os.write(1, b"another\n")
    return question


if __name__ == "__main__":
    serve(answer)
