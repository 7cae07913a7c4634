"""A process of `pool`: jobs come as lines of JSON on standard input, answers go as lines of JSON to standard output."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from trainer.corpora.tokenize.jobs import run_job
from trainer.data.errors import DataError


def serve(jobs: TextIO, answers: TextIO) -> None:
    """Each line of `jobs` is a work directory and a job in it."""

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    for line in jobs:
        work, job = json.loads(line)
        try:
            result = run_job(Path(work), job, lambda read, tokens: answer(told=[read, tokens]))
        except DataError as error:
            answer(error=str(error))
        except OSError as error:
            answer(error=f"{error.filename or work}: {error.strerror or error}")
        else:
            answer(result=result)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that ends this one
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    serve(sys.stdin, output)
