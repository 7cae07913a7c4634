"""A process of `pool`: jobs come as lines of JSON on standard input, answers go as lines of JSON to standard output."""

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from trainer.data.errors import DataError
from trainer.data.tokenize.jobs import run_job


def _main(work: Path, jobs: TextIO, answers: TextIO) -> None:
    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    for line in jobs:
        try:
            result = run_job(work, json.loads(line), lambda read, tokens: answer(told=[read, tokens]))
        except DataError as error:
            answer(error=str(error))
        except OSError as error:
            answer(error=f"{error.filename or work}: {error.strerror or error}")
        else:
            answer(result=result)


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    _main(Path(sys.argv[1]), sys.stdin, output)
