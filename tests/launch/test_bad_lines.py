"""Generated mistakes: exit code 2, one clear line each, no traceback, and a remedy that works as it is typed."""

import importlib
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest

from launch import cli
from parallel.errors import UserError
from tests.launch.bad_lines import BASE, GROUPS, HEAD, Case, cases, misspelt, shapes
from tests.launch.retyped import OPEN, mend, retyped
from trainer.config import compose as composing
from trainer.config.command_line import Parser

CHECKOUT = Path(__file__).resolve().parents[2]
QUICK, ALL, SEED = 64, 240, 29
SHARED, TYPED = 64, 0.9  # of so many mistakes, the share whose remedy is typed
LIBRARY = re.compile(r"omegaconf|dictconfig|listconfig|antlr|full_key|object_type|traceback|hydra\.cc|<class", re.I)
CASES = cases(ALL, SEED)
# Lines whose remedy led back to the mistake, or came with a second fault
SEEN = [
    Case("wrong value", BASE, ["model.image_token=[1]"]),
    Case("wrong value", BASE, ["optim.parts.router.lr=fast"]),
    Case("wrong value", BASE, ["optim.parts.merger.weight_decay=inf"]),
    Case("out of range", BASE, ["optim.parts.signals.lr=-1"]),
    Case("wrong value", BASE, ["data.holdout_fraction=-1e39"]),
    Case("wrong value", ["config", "recipe=rl_toy"], ["rl.kl_estimator=k22"]),
    Case("group", ["config", "data=synthetic"], ["~recipe"]),
    Case("group", ["config", "data=synthetic"], ["~recipe=toy"]),
    Case("group", BASE, ["~recipe"]),
    Case("shape", BASE, ["model.vision"]),
    Case("misspelt key", BASE, ["model.vzsion=null"]),
    Case("recipe", ["config", "--config-dir", "mine", "data=synthetic", "recipe=bad"], [],
         {"recipe/bad.yaml": f"{HEAD}defaults: [nowhere]".encode(),
          "recipe/other.yaml": f"{HEAD}defaults: [bad]\n".encode()}),
]  # fmt: skip
CPU_S = 1.0  # of a process that needs no torch


@pytest.fixture(scope="module")
def composed():
    """Trees that Hydra has composed, by the options chosen: most lines choose the same ones."""
    return {}


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch, tmp_path, composed):
    genuine = composing._compose_groups

    def once(words, groups, config_dirs):
        key = tuple(sorted(words.options.items()))
        if config_dirs or not words.options.get("recipe"):
            return genuine(words, groups, config_dirs)
        if key not in composed:
            composed[key] = pickle.dumps(genuine(words, groups, config_dirs))
        return pickle.loads(composed[key])

    monkeypatch.setattr(composing, "_compose_groups", once)
    monkeypatch.chdir(tmp_path)


def write(files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        file = Path("mine", path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def run(words, monkeypatch, capsys):
    """(exit code, the faults, what is on stderr) of a command in this process."""
    faults = []
    genuine = cli.report

    def report(error, *, started):
        faults.extend(getattr(error, "faults", ()))
        return genuine(error, started=started)

    with monkeypatch.context() as patch:
        patch.setattr(cli, "report", report)
        code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 0 or out == ""
    return code, faults, err


@pytest.mark.parametrize(
    "case", [*SEEN, *CASES[:QUICK], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[QUICK:])], ids=str
)
def test_a_mistake_is_one_line_whose_remedy_works(case, monkeypatch, capsys):
    write(case.files)
    code, faults, said = run(case.words, monkeypatch, capsys)
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said), said
    assert not LIBRARY.search(said), said
    assert len(said) < 2500
    (fault,) = faults
    assert fault.where
    if case.kind == "recipe":
        files = mend(case, fault)
        if files is not None:
            write(files)
            further = checked(case.words)
            assert fault.text not in {one.text for one in further}
            assert fault.where.endswith(".yaml") or fault.where not in {one.where for one in further}, further
        return
    words = retyped(case, fault)
    if words is None:
        return
    further = checked([*case.base, *words])
    assert fault.text not in {one.text for one in further}
    # the mistake is mended; another key may now not fit, as where a size changed, nor an option without another
    mended = {fault.where, *(word.partition("=")[0] for word in words)}
    assert not {one for one in mended if not one.startswith("--")} & {one.where for one in further}, (words, further)


def test_nearly_all_remedies_are_typed():
    """The others leave open what to type: a value that only the user knows, or YAML that does not parse."""
    typed, left = 0, []
    for case in CASES[:SHARED]:
        write(case.files)
        (fault,) = checked(case.words)
        if (mend if case.kind == "recipe" else retyped)(case, fault) is not None:
            typed += 1
        else:
            left.append(fault)
    assert typed >= TYPED * SHARED, left
    assert [fault for fault in left if not (isinstance(fault.allowed, tuple) or OPEN.match(str(fault.allowed)))] == []


def checked(words):
    """The faults that a command finds before it starts."""
    name, *rest = words
    if name not in cli.COMMANDS:
        return cli._no_such_command(name).faults
    command = importlib.import_module(cli.module_of(name))
    try:
        command.prepare(Parser(f"octavo {name}", ""), rest)
    except UserError as error:
        return error.faults
    return ()


def test_all_kinds_are_drawn():
    kinds = {case.kind for case in CASES}
    assert len(kinds) == 8
    assert len(CASES) == ALL
    assert [str(case) for case in cases(20, SEED)] == [str(case) for case in CASES[:20]]


def test_no_drawn_line_chooses_an_option():
    """As `precision=fp32` would, drawn as a section with the value of one of its keys."""
    drawn = [case.bad[0].partition("=") for case in islice(shapes(random.Random(SEED)), 3000)]
    assert [name for name, _, value in drawn if value in GROUPS.get(name, ())] == []


@pytest.mark.parametrize("word", ["n", "lr", "steps"])
def test_a_misspelt_word_is_another_word(word):
    drawn = {misspelt(word, random.Random(seed)) for seed in range(30)}
    assert len(drawn) > 2
    assert not drawn & {word, ""}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:200], ids=str)
def test_a_mistake_is_known_within_a_second(case):
    """In a process of its own: the same line, and no more CPU time than the start of Python and Hydra takes."""
    write(case.files)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second command does not compile anything again
    for _ in range(3):  # a busy machine counts waiting for memory, and for the other thread of a core, as CPU time
        process = subprocess.Popen([sys.executable, "-m", "launch.cli", *case.words], env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
        _pid, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert (process.returncode, out) == (2, b"")
        assert len(err.decode().splitlines()) == 1
        if used.ru_utime + used.ru_stime < CPU_S:
            return
    pytest.fail(f"{used.ru_utime + used.ru_stime:.2f} CPU-seconds")
