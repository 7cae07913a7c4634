"""`octavo recipes`, `octavo config --keys`, and completion: in this process, and in those of three shells there are."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main, module_of
from launch.reference.complete import complete
from launch.reference.keys import list_keys
from launch.reference.recipes import meaning
from parallel.errors import UserError
from trainer.config.coerce import leaf_of
from trainer.config.command_line import Parser
from trainer.config.recipes.groups import KEYS, built_in, list_groups

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = {name: module_of(name) for name in COMMANDS}
# `octavo` as a shell finds it
SHIM = f"""#!/bin/sh
PYTHONPATH={CHECKOUT} exec {sys.executable} -m launch.cli "$@"
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine/recipe").mkdir(parents=True)
    (tmp_path / "mine/site").mkdir()
    (tmp_path / "mine/recipe/long.yaml").write_text("# @package _global_\n# A long run. It takes\n# days.\ntrain: {}\n")
    (tmp_path / "mine/recipe/latin.yaml").write_bytes(b"# @package _global_\n# caf\xe9\n")
    (tmp_path / "mine/site/fast.yaml").write_text("# @package _global_\n")
    return tmp_path


def test_every_option_says_what_it_is_for(capsys):
    assert main(["recipes", *list_groups()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(built_in())
    for line in lines:
        name, text = line.split(None, 1)
        assert meaning(built_in()[name.replace("=", "/", 1)]) == text
        assert len(text) > 10
    assert main(["recipes"]) == 0
    own = [line.split()[0] for line in lines if line.startswith("recipe=")]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == own


def test_a_users_recipes_are_listed(mine, capsys):
    assert main(["recipes", "--config-dir", "mine"]) == 0
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["recipe=long"] == "A long run."
    assert lines["recipe=latin"] == "(cannot be read: not UTF-8)"
    assert main(["recipes", "site", "--config-dir", "mine"]) == 0
    assert capsys.readouterr().out == "site=fast\n"
    assert main(["recipes", "modle"]) == 2
    assert "'model'" in capsys.readouterr().err


def test_every_key_has_a_type_a_default_and_a_meaning():
    keys = {key.name: key for key in list_keys()}
    assert {leaf_of(name, KEYS) for name in keys} == set(KEYS)
    assert [name for name in keys if name.startswith("model.vision.")]
    for key in keys.values():
        assert len(key.meaning) > 5, key.name
        assert key.kind
        assert key.default
    lr, prefixes, path = keys["optim.lr"], keys["data.prefixes"], keys["data.sources.NAME.path"]
    assert (lr.kind, lr.default) == ("number", "0.001")
    assert (keys["optim.schedule"].kind, keys["run.dir"].kind) == ("wsd|cosine|constant", "text or null")
    assert (keys["model.num_layers"].default, keys["train.compile"].default) == ("required", "false")
    assert (prefixes.kind, path.kind) == ("mapping to list of texts", "text")
    assert keys["optim.betas"].default == "[0.9,0.95]"


def test_keys_are_listed_by_prefix(capsys):
    assert main(["config", "--keys", "optim.w"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "optim.weight_decay", "optim.warmup_steps"]  # fmt: skip
    assert main(["config", "--keys"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list_keys())
    for words, where in ((["--keys", "optm"], "--keys"), (["recipe=toy", "--keys", "optim"], "--keys")):
        assert main(["config", *words]) == 2
        assert capsys.readouterr().err.startswith(f"error: {where}")
    with pytest.raises(UserError) as caught:
        list_keys("optm")
    assert caught.value.allowed == ("optim",)


def test_help_points_to_the_lists(capsys):
    for command in ("train", "config"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert "octavo config --keys" in shown
        assert "octavo recipes" in shown


# the unfinished line -> some of what may follow, something that may not
COMPLETED = [
    ("octavo ", ["train", "recipes", "--version"], "recipe="),
    ("octavo tr", ["train"], "tokenize"),
    ("octavo config rec", ["recipe="], "model="),
    ("octavo config recipe=toy", ["recipe=toy", "recipe=toy_gpu"], "recipe=cpt_6t"),
    ("octavo config recipe=toy ", ["model=", "optim.", "train."], "recipe="),
    ("octavo train recipe=toy mod", ["model=", "model."], "data="),
    ("octavo train optim.l", ["optim.lr="], "optim.eps="),
    ("octavo train optim.lr=1 optim.", ["optim.eps="], "optim.lr="),
    ("octavo train optim.schedule=", ["optim.schedule=wsd", "optim.schedule=cosine"], "optim.schedule="),
    ("octavo train train.compile=t", ["train.compile=true"], "train.compile=false"),
    ("octavo train --n", ["--nproc-per-node", "--nnodes"], "--config-dir"),
    ("octavo train --nnodes 2 --", ["--nproc-per-node", "--config-dir"], "--nnodes"),
    ("octavo layout --config-dir mine --", ["--world", "--config-dir"], "--nnodes"),
    ("octavo config --keys train.s", ["train.steps", "train.seed"], "optim.lr"),
    ("octavo config --diff t", ["toy", "toy_gpu"], "upcycle_study"),
    ("octavo export a b --dtype ", ["source", "fp32", "bf16"], "--dtype"),
    ("octavo completion ", ["bash", "zsh", "fish"], "train"),
    ("octavo data ", ["check", "show", "stats"], "recipe="),
    ("octavo data s", ["show", "stats"], "check"),
    ("octavo data --config-dir mine ", ["check", "show", "stats"], "recipe="),
    ("octavo data check ", ["toy", "recipe=", "optim."], "check"),
    ("octavo data show --config-dir mine l", ["long", "latin"], "toy"),
    ("octavo data show toy ", ["recipe=", "train."], "show"),
    ("octavo data stats recipe=toy_", ["recipe=toy_ep8"], "toy_ep8"),
    ("octavo recipes mo", ["model"], "optim"),
    ("octavo train --config-dir mine recipe=l", ["recipe=long", "recipe=latin"], "recipe=toy"),
    ("octavo train --config-dir mine ", ["+site="], "site="),
    ("octavo train --config-dir mine +site=", ["+site=fast"], "recipe="),
]  # fmt: skip


@pytest.mark.parametrize(("line", "wanted", "not_wanted"), COMPLETED, ids=[line for line, *_ in COMPLETED])
def test_words_are_completed(line, wanted, not_wanted, mine):
    found = complete(line, MODULES)
    assert set(wanted) <= set(found)
    assert not_wanted not in found
    current = "" if line.endswith(" ") else line.split()[-1]
    assert all(word.startswith(current) for word in found)


@pytest.mark.parametrize("line", ["octavo nonsense ", "octavo train --config-dir nowhere recipe=", "octavo inspect ",
                                  "octavo train run.dir=", "octavo export "])  # fmt: skip
def test_files_may_follow_elsewhere(line, mine):
    assert complete(line, MODULES) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_every_command_are_completed_and_accepted(command):
    found = complete(f"octavo {command} --", MODULES)
    assert "--help" in found
    with pytest.raises(UserError) as caught:
        Parser("x", "x").read(["--nonsense"])
    assert caught.value.where == "--nonsense"


# how a shell is started without the user's files, and two lines: the script's, and Ctrl-T to show what is typed
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"],
             "source <(octavo completion bash)",
             "bind 'set enable-bracketed-paste off'; bind -x '\"\\C-t\": echo \"LINE[$READLINE_LINE]\"'"),
    "zsh": (["zsh", "-f", "-i"],
            "autoload -U compinit; compinit -D; source <(octavo completion zsh)",
            "show() { print -r -- \"LINE[$BUFFER]\" }; zle -N show; bindkey '^T' show"),
    "fish": (["fish", "--no-config", "-i"],
             "octavo completion fish | source",
             "bind \\ct 'echo \"LINE[\"(commandline)\"]\"'"),
}  # fmt: skip
IN_A_SHELL = [
    ("octavo conf", "octavo config "),
    ("octavo config rec", "octavo config recipe="),
    ("octavo config recipe=toy_e", "octavo config recipe=toy_ep8 "),
    ("octavo train optim.sched", "octavo train optim.schedule="),
    ("octavo train run.dir=runs-of", "octavo train run.dir=runs-of-mine/"),
    ("octavo data ch", "octavo data check "),
]


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_completes(mine, name):
    """In an interactive shell, key by key: a word, a word after `=`, a list, a file name."""
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    start, script, show = SHELLS[name]
    shim = mine / "bin/octavo"
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    (mine / "runs-of-mine").mkdir()
    path = f"{shim.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PS1": "$ ", "TERM": "dumb", "HOME": str(mine), "TMPDIR": str(mine)}
    process, terminal = pty.fork()
    if not process:
        os.chdir(mine)
        os.execvpe(start[0], start, environment)
    shell = _Terminal(terminal)
    try:
        for line in (script, show):
            shell.type(f"{line}; echo REA''DY\n", until="READY\r\n")
        for line, completed in IN_A_SHELL:
            shown = shell.type(f"{line}\t\x14", until="]")
            assert re.findall(r"LINE\[(.*?)\]", shown) == [completed]
            shell.type("\x15")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


class _Terminal:
    def __init__(self, descriptor):
        self._descriptor = descriptor

    def type(self, text, until=""):
        os.write(self._descriptor, text.encode())
        shown, end = "", time.monotonic() + 60
        while until and until not in shown and time.monotonic() < end:
            if select.select([self._descriptor], [], [], 0.5)[0]:
                shown += os.read(self._descriptor, 65536).decode(errors="replace")
        assert until in shown
        return shown


def test_the_lists_and_completion_import_no_torch_and_are_quick():
    program = (
        "import contextlib, io, sys, time\nfrom launch.cli import main\n"
        "for words in (['recipes'], ['config', '--keys'], ['completion', 'zsh'], ['__complete', 'octavo train opt']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n        assert main(words) == 0\n"
        "print(time.process_time() < 1, sorted({'torch', 'numpy', 'hydra', 'datasets', 'rich'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
