"""The packages whose documentation the model of subjects is trained on: a list that users can replace by their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from trainer.corpora.captions.routing.fit import Labelled
from trainer.corpora.captions.routing.subjects import SUBJECTS, Subject
from trainer.corpora.captions.routing.texts import FEWEST, package_texts
from trainer.data.errors import DataError
from trainer.storage.progress import OnProgress, Progress

BUILT_IN = Path(__file__).with_name("packages.yaml")
Part = Literal["train", "held_out"]
PARTS: tuple[Part, ...] = get_args(Part)
LOOKED_AT, MOST = 400, 200  # texts of a package; at most MOST long enough ones are taken
TRAINED_WORDS = 20  # of the shortest text that is trained on: shorter ones seldom say what they are about
# The same files on every machine: what they say does not depend on it.
PYTHON = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "abi3", "--abi", "none"]
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64",
             "manylinux_2_17_x86_64"]  # fmt: skip


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    subject: Subject
    part: Part


def read_packages(path: Path = BUILT_IN) -> list[Package]:
    """The packages of a file {subject: {train: {name: version}, held_out: {name: version}}}. Raises DataError."""
    form = f"{{subject: {{{PARTS[0]}: {{name: version}}, {PARTS[1]}: {{name: version}}}}}}, of {', '.join(SUBJECTS)}"
    try:
        found = [
            Package(str(name), str(version), subject, part)
            for subject, parts in yaml.safe_load(path.read_text()).items()
            for part, packages in parts.items()
            for name, version in (packages or {}).items()
        ]
        twice = {one.name for one in found if [other.name for other in found].count(one.name) > 1}
        if twice or not {one.subject for one in found} <= {*SUBJECTS} or not {one.part for one in found} <= {*PARTS}:
            raise ValueError(f"twice: {', '.join(sorted(twice))}" if twice else "a subject or part that there is not")
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        text = f"{path} is not a list of packages ({error}); write {form}"
        raise DataError(text, where=str(path), allowed=form) from error
    return found


def download(packages: Sequence[Package], directory: Path) -> None:
    """Let pip download the wheels; nothing is installed. Raises DataError where pip fails."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{one.name}=={one.version}" for one in packages]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", *PYTHON, *platforms, "--dest", str(directory), *wanted]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        remedy = "see pip's message above"
        raise DataError(f"pip could not download all {len(wanted)} packages; {remedy}", where="pip", allowed=remedy)


def read_texts(
    packages: Sequence[Package], wheels: Path, part: Part, progress: OnProgress, most: int = MOST
) -> list[Labelled]:
    """At most `most` texts of each package of a part. Raises DataError for a wheel that is missing or unreadable."""
    paths = {_key(*path.name.split("-")[:2]): path for path in sorted(wheels.glob("*.whl"))}
    wanted = [one for one in packages if one.part == part]
    fewest = TRAINED_WORDS if part == "train" else FEWEST
    texts = []
    for done, one in enumerate(wanted):
        progress(Progress("reading wheels", done, len(wanted), "records", detail=one.name))
        if (path := paths.get(_key(one.name, one.version))) is None:
            remedy = "download it, as the command `download` does"
            text = f"{wheels} has no wheel of {one.name} {one.version}; {remedy}"
            raise DataError(text, where=str(wheels), value=one.name, allowed=remedy)
        long = [t for t in package_texts(path)[:LOOKED_AT] if len(t.caption.split()) + len(t.context.split()) >= fewest]
        texts += [Labelled(one.name, one.subject, text.caption, text.context) for text in long[:most]]
    return texts


def _key(name: str, version: str) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", name).lower(), version
