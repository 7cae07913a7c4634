"""`octavo`: help, `octavo config`, and what `octavo train` says before any process is started."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main
from parallel.errors import Fault, UserError
from parallel.interrupts import INTERRUPTED
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from trainer.config.compose import compose, load, to_yaml
from trainer.config.errors import ConfigError
from trainer.run.directory import choose, prepare

# What a command needs besides its mistake, which is reported first.
NEEDED = {"layout": ["--world=1"], "tokenize": ["out", "--tokenizer=t"], "export": ["a", "b"], "upcycle": ["a", "b"],
          "science": ["out"], "captions": ["out", "a.pdf"],
          "inspect": ["a"], "completion": ["bash"], "generate": ["a", "b"]}  # fmt: skip
CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.commands.train.import_torchrun", lambda: None)  # no test here starts a process


def test_help_names_the_commands_and_the_groups(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "octavo train" in out
    assert "octavo config" in out
    assert "model=grouped_30b_a3b|" in out
    assert main([]) == 2


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["config", "-h", "recipe=toy"]])
def test_help_lists_the_options_of_a_users_directory(words, capsys):
    Path("mine/recipe").mkdir(parents=True)
    Path("mine/recipe/long.yaml").write_text("# @package _global_\n")
    if words[0] == "--help":
        assert main(["--config-dir", "mine", *words]) == 0
    else:
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--config-dir=mine"])
    assert re.search(r"\n  recipe=cpt_117b_32gpu\|[^ ]*\|long\|lora_30b_1gpu\|[^ ]*\|toy", capsys.readouterr().out)
    assert main(["--help", "--config-dir", "nowhere"]) == 2
    error_line(capsys.readouterr().err, "--config-dir", "nowhere")


READ = [["--help"], ["train", "--help"], ["recipes"], ["config", "--keys"], ["config", "recipe=toy"]]


@pytest.mark.parametrize(("words", "unbuffered"), [(READ[0], "1"), *((words, "") for words in READ)])
def test_an_output_whose_reader_has_gone_ends_a_command_quietly(words, unbuffered):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen([sys.executable, "-m", "launch.cli", *words], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    process.stdout.close()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (141, "")


def test_help_of_data_names_its_actions_and_recipes(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["data", "--help"])
    text = capsys.readouterr().out.partition("positional arguments")[0]
    for word in ("index", "check", "show", "stats", "toy_multimodal", "vision_contrastive", "vision_contrastive_toy"):
        assert re.search(rf"\b{word}\b", text)
    assert main(["--help"]) == 0
    assert "index" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  octavo data"))


def test_version_names_what_decides_results(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"octavo \d\S*, torch \d\S*, Python 3\.\d+\S*\n", capsys.readouterr().out)
    monkeypatch.setattr(sys, "path", [])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("octavo (not installed as a package), ")


def test_an_unknown_command_is_suggested(capsys):
    assert main(["trian", "recipe=toy"]) == 2
    assert error_line(capsys.readouterr().err, "trian", *COMMANDS).count("train") == 2  # in the list, and suggested
    assert main(["trian", "--help"]) == 2


def test_starting_imports_no_torch():
    """Help, a resolved configuration and a bad command, in a process of its own."""
    program = (
        "import sys; from launch.cli import main\n"
        "for words in (['--help'], ['--version'], ['config', 'recipe=toy'],\n"
        "              ['config', '--diff', 'toy', 'toy optim=sgd'], ['train', 'recipe=toy', 'optim.lrr=1']):\n"
        "    main(words)\n"
        "print(sorted({'torch', 'numpy', 'datasets', 'wandb', 'rich', 'transformers'} & set(sys.modules)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    error_line(done.stderr, "optim.lrr", "'optim.lr'")


MISSING = [
    "inspect nowhere", "inspect .", "export nowhere out", "export . out", "upcycle nowhere out --factor 0",
    "upcycle nowhere --calibrate text --counts c", "upcycle nowhere out --dry-run --vocabulary none",
    "layout recipe=toy --world 8 --config-dir nowhere", "generate nowhere text", "generate . text",
]  # fmt: skip


def test_a_missing_or_wrong_directory_is_reported_without_torch():
    """All in one process of its own."""
    program = (
        "import sys; from launch.cli import main\n"
        f"codes = [main(words.split()) for words in {MISSING}]\n"
        "print(codes, 'torch' in sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == f"{[2] * len(MISSING)} False", done.stderr
    assert done.stderr.count("nowhere: no ") == 7, done.stderr


def test_config_prints_what_reads_back(capsys, tmp_path):
    assert main(["config", "recipe=toy", "optim.lr=1e-5"]) == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert load("printed.yaml") == compose(["recipe=toy", "optim.lr=1e-5"])


def test_config_with_a_users_directory(capsys):
    Path("mine/recipe").mkdir(parents=True)
    Path("mine/recipe/long.yaml").write_text("# @package _global_\ndefaults: [toy]\ntrain: {steps: 9000}\n")
    assert main(["config", "recipe=long", "--config-dir", "mine"]) == 0
    assert "steps: 9000" in capsys.readouterr().out
    assert main(["config", "--config-dir=mine", "--diff", "toy", "long"]) == 0
    old = compose(["recipe=toy"]).train.steps
    assert capsys.readouterr().out == f"run.name: toy -> long\ntrain.steps: {old} -> 9000\n"


@pytest.mark.parametrize(("words", "world"), [(["parallel=ep8"], 8), (["parallel.dp_replicate=3"], 3)])
def test_config_and_layout_check_a_number_of_ranks_and_offer_it(capsys, words, world):
    """Commands to which the ranks do not matter take the same words."""
    fault = refused("config", "recipe=toy", *words)
    assert fault.where.startswith("parallel.")
    assert re.findall(r"--world=(\d+)", fault.text) == [f"{world}"]
    assert f"--nproc-per-node={world}" in refused("train", "recipe=toy", *words).text
    assert fault.text in [one.text for one in every_fault("layout", "recipe=toy", *words, "--world=1")]
    further = every_fault("config", "recipe=toy", *words, f"--world={world}")
    assert [one.where for one in further] == ["train.global_batch"]  # the remedy; 8 samples are one micro-batch
    batch = f"train.global_batch={8 * world}"
    assert main(["config", "recipe=toy", *words, f"--world={world}", batch]) == 0
    capsys.readouterr()
    assert main(["config", "--diff", "toy", shlex.join(["recipe=toy", *words])]) == 0
    assert "parallel." in capsys.readouterr().out
    (fault,) = every_fault("data", "show", "recipe=toy", "x", *words)
    assert fault.where == "N"


def test_config_takes_world_for_a_configuration_alone():
    assert refused("config", "--diff", "toy", "toy", "--world=2").where == "--world"
    assert refused("config", "--keys", "optim", "--world=2").where == "--keys"


def test_config_reports_every_mistake(capsys):
    assert main(["config", "recipe=toy", "optim.lrr=1", "train.steps=0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    unknown, range_ = captured.err.splitlines()
    error_line(unknown, "optim.lrr")
    error_line(range_, "train.steps=0")


def test_differences_of_recipes_overrides_files_and_run_directories(capsys):
    cfg = compose(["recipe=toy", "optim.lr=0.5"])
    Path("file.yaml").write_text(to_yaml(cfg))
    run = choose(cfg)
    prepare(run, cfg)
    old = compose(["recipe=toy"]).optim.lr
    for other in ("recipe=toy optim.lr=0.5", "toy optim.lr=0.5", "file.yaml", "./file.yaml"):
        assert main(["config", "--diff", "toy", other]) == 0
        assert capsys.readouterr().out == f"optim.lr: {old} -> 0.5\n"
    assert main(["config", "--diff", "file.yaml", str(run.path)]) == 0
    assert capsys.readouterr().out == f"run.dir: null -> {run.path}\n"
    assert main(["config", "--diff", "toy", "recipe=toy"]) == 0
    assert capsys.readouterr().out == "no differences\n"
    assert main(["config", "--diff", "toy", "missing.yaml"]) == 2
    error_line(capsys.readouterr().err, "missing.yaml")


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["recipe=toyy"], ["recipe=toyy", "toy_ep8", "upcycle_study", "'toy'"]),
        (["--nproc-per-node", "3", "recipe=toy"], ["train.micro_batch", "8 x 3 = 24"]),
        (
            ["--nproc_per_node=3", "--nnodes", "2", "recipe=toy", "train.micro_batch=4"],
            ["train.micro_batch", "4 x 6 = 24"],
        ),
        (["recipe=toy", "run.dir=taken"], ["run.dir", "taken", "config.yaml"]),
    ],
)
def test_train_refuses_before_any_process(words, data, capsys, monkeypatch):
    Path("taken").mkdir()
    Path("taken/file").write_text("")
    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *arguments: pytest.fail("torchrun was started"))
    assert main(["train", *words]) == 2
    error_line(capsys.readouterr().err, *data)


@pytest.mark.parametrize(
    ("words", "value", "allowed"),
    [
        (["--nproc-per-node", "0"], "0", "a whole number, 1 or more"),
        (["--nproc-per-node", "gpu"], "gpu", "a whole number, 1 or more"),
        (["--nprocs-per-node", "2"], None, "did you mean '--nproc-per-node'?"),
        (["--master-port", "abc"], "abc", "0 to 65535"),
        (["--master-port=65536"], "65536", "0 to 65535"),
        (["--node-rank", "-1"], "-1", "a whole number, 0 or more"),
        (["--nnodes", "2", "--nnodes", "3"], None, "one of them"),
        (["--nnodes=2", "--nnodes=3"], None, "one of them"),
        (["--nproc-per-node=2", "--nproc_per_node", "3"], None, "one of them"),
        (["--optim.lr", "3"], None, "use optim.lr=VALUE"),
        (["--optim.lr=3"], None, "use optim.lr=3"),
        (["--optim.eps=1e-08"], None, "use optim.eps=1e-08"),
        (["--train.log-every=3"], None, "use train.log_every=3"),
    ],
)
def test_train_refuses_bad_options(words, value, allowed):
    fault = refused("train", "recipe=toy", *words)
    option = words[0].partition("=")[0]
    assert (fault.where, fault.value, fault.allowed) == (option, value, allowed)
    assert option in fault.text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("word", "where"), [("--nonsense=1", "--nonsense"), ("--config-dir", "--config-dir")])
def test_every_command_reports_a_mistake_in_one_line(command, word, where, capsys):
    """An unknown option, and an option without its value: no usage text, no traceback, exit code 2."""
    words = [*NEEDED.get(command, []), word]
    assert main([command, *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error_line(shown.err, where)


@pytest.mark.parametrize(
    "command", ["tokenize", "layout", "data", "export", "upcycle", "science", "captions", "inspect", "generate"]
)
def test_a_missing_argument_is_one_line(command, capsys):
    assert main([command]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error_line(shown.err, f"octavo {command}")


def test_errors_on_the_way_are_printed_alike_and_return_1(monkeypatch, capsys):
    faults = [Fault("a: wrong", "a"), Fault("b: wrong", "b")]
    for error, code, lines in (
        (UserError(faults), 1, "error: a: wrong\nerror: b: wrong\n"),
        (ConfigError("c: wrong", where="c"), 2, "error: c: wrong\n"),
        (FileNotFoundError(2, "No such file or directory", "d"), 1, "error: d: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ):
        for early in (False, True):

            def fail(*arguments, error=error):
                raise error

            monkeypatch.setattr("launch.commands.config.prepare", fail if early else lambda *arguments: fail)
            assert main(["config"]) == (2 if early and code == 1 else code)
            assert capsys.readouterr().err == (f"{INTERRUPTED}\n" if early and code == 130 else lines)


def test_train_hands_the_resolved_configuration_to_torchrun(monkeypatch):
    seen = {}

    def torchrun(arguments, again, memory):
        place = arguments.index("--resolved")
        seen["arguments"] = list(arguments[: place + 2])
        seen["cfg"] = load(arguments[place + 1], world_size=2)
        seen["rest"] = arguments[place + 2 :]
        if seen["rest"]:
            seen["run"] = json.loads(Path(seen["rest"][1]).read_text())
        return 7

    monkeypatch.setattr("launch.commands.train.run_ranks", torchrun)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["recipe=toy", "--nproc-per-node", "2", "optim.lr=1e-3", "train.micro_batch=4"]
    assert main(["train", *words]) == 7
    assert seen["cfg"] == compose(["recipe=toy", "optim.lr=1e-3", "train.micro_batch=4"])
    assert seen["arguments"][:-1] == [
        *("--nnodes", "1", "--nproc-per-node", "2", "--standalone"),
        *("--log-dir", str(Path(seen["arguments"][-1]).with_name("logs"))),  # removed with the configuration
        *("-m", "trainer", "--resolved"),
    ]
    run = choose(seen["cfg"])
    assert seen["run"].pop("command")[1:] == ["train", *words]
    assert {key: value for key, value in seen["run"].items() if value} == {"path": str(run.path), "status": "new"}
    assert seen["rest"][0] == "--run-directory"
    assert not Path(seen["rest"][1]).exists()
    machines = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv_endpoint", "node0:29400", "--rdzv-id", "a_b"]
    assert main(["train", "recipe=toy", "train.micro_batch=4", *machines]) == 7
    assert seen["arguments"][:-1] == [
        *("--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29400", "--rdzv-id", "a_b"),
        *("--log-dir", str(Path(seen["arguments"][-1]).with_name("logs"))),
        *("-m", "trainer", "--resolved"),
    ]
    assert seen["rest"] == []  # the machine of rank 0 chooses the directory


@pytest.mark.parametrize("command", ["config", "train"])
def test_a_vocabulary_below_the_corpus_is_refused_before_torch(command, monkeypatch):
    fault = refused(command, "recipe=toy", "model.vocab_size=10")
    assert (fault.where, fault.value, fault.allowed) == ("model.vocab_size", 10, "4096 or more")
    paths = (f"data.sources.{name}.path={name}" for name in ("pubchem", "thermo", "code", "prose"))
    corpus = ["data.build=none", *paths]
    assert main(["config", "recipe=toy", "model.vocab_size=10", *corpus]) == 0  # none is there yet
    for name, text in (("code", '{"tokenizer": {"vocab_size": 5000}}'), ("prose", "{"), ("thermo", "[]")):
        Path(name).mkdir()
        Path(name, "manifest.json").write_text(text)
    fault = refused(command, "recipe=toy", *corpus)
    assert (fault.where, fault.value, fault.allowed) == ("model.vocab_size", 4096, "5000 or more")
    assert main(["config", "recipe=toy", "model.vocab_size=5000", *corpus]) == 0


def test_train_leaves_a_finished_run_alone(monkeypatch, capsys):
    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *arguments: pytest.fail("torchrun was started"))
    cfg = compose(["recipe=toy", "train.steps=100"])
    run = choose(cfg)
    prepare(run, cfg)
    folder = run.path / "checkpoints/step-100"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    assert main(["train", "recipe=toy", "train.steps=100"]) == 0
    assert "Set train.steps above" in capsys.readouterr().out
