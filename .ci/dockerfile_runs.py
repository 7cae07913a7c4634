"""Executes the RUN lines of a Dockerfile as shell, in an empty directory: python .ci/dockerfile_runs.py FILE

A check for machines without an image builder. ARG and ENV values are set, COPY copies from the working tree, WORKDIR is
that directory, and this machine takes the place of the base image. Lines that call apt-get need root and apt-get; they
are skipped with a message elsewhere.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def instructions(text: str) -> list[tuple[str, str]]:
    """(keyword, rest) of every instruction, comments and line continuations resolved."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.strip().partition(" ") for line in joined.splitlines())
    return [(keyword.upper(), rest.strip()) for keyword, _, rest in pairs]


def copy(words: list[str], target: Path) -> None:
    """COPY SOURCE... DESTINATION of relative paths, of files that git tracks or would track."""
    *sources, destination = words
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *sources], text=True
    )
    for name in filter(None, listed.split("\0")):
        place = target / (name if destination == "." else Path(destination, Path(name).name))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, place)


def main(dockerfile: str) -> int:
    can_apt = shutil.which("apt-get") is not None and os.geteuid() == 0
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="octavo-dockerfile-") as directory:
        for keyword, rest in instructions(Path(dockerfile).read_text()):
            if keyword in ("ARG", "ENV"):
                name, _, value = rest.partition("=")
                environment[name] = value.strip("\"'")
            if keyword == "COPY":
                copy([word.removeprefix("./") for word in rest.split()], Path(directory))
            if keyword != "RUN":
                continue
            if re.search(r"\bapt-get\b", rest) and not can_apt:
                print(f"SKIPPED, needs root and apt-get: RUN {rest}", flush=True)
                continue
            print(f"RUN {rest}", flush=True)
            start = time.monotonic()
            done = subprocess.run(["sh", "-e", "-c", rest], cwd=directory, env=environment, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                print(f"{dockerfile}: exit code {done.returncode} from RUN {rest}", file=sys.stderr)
                return 1
            print(f"    ok in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
