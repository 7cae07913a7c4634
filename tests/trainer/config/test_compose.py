"""From the words of a command line to a configuration, or to every mistake in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.printed import error_line
from trainer import start as entry
from trainer.config.compose import compose, load, to_yaml
from trainer.config.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[3]


RECIPE_OF = {
    "model=vision_toy": "recipe=vision_contrastive_toy",
    "model=vision_contrastive": "recipe=vision_contrastive",
}


def faults(*words, **options):
    with pytest.raises(ConfigError) as caught:
        compose(list(words), **options)
    assert not any("\n" in fault.text for fault in caught.value.faults)
    return caught.value.faults


def load_faults(folder, text):
    with pytest.raises(ConfigError) as caught:
        load(write(folder / "c.yaml", text))
    return caught.value.faults


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# -- what wins -------------------------------------------------------------------------------------------------------


def test_the_recipe_wins_over_groups_and_the_command_line_over_the_recipe(tmp_path):
    write(tmp_path / "optim/mine.yaml", "name: adamw\nlr: 0.5\neps: 0.5\nweight_decay: 0.5\n")
    write(
        tmp_path / "recipe/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /optim: mine\noptim:\n  lr: 0.25\n  eps: 0.25\n",
    )
    cfg = compose(["recipe=mine", "optim.lr=0.125"], config_dirs=[tmp_path])
    assert (cfg.optim.weight_decay, cfg.optim.eps, cfg.optim.lr) == (0.5, 0.25, 0.125)


def test_a_group_on_the_command_line_wins_over_the_recipes_choice():
    assert compose(["recipe=toy"]).optim.name == "adamw"
    assert compose(["recipe=toy", "optim=sgd"]).optim.name == "sgd"
    assert compose(["optim.name=sgd", "recipe=toy"]).optim.name == "sgd"
    muon = compose(["recipe=toy", "optim=muon"]).optim
    assert (muon.name, muon.momentum, muon.adamw_lr_ratio) == ("muon", 0.95, 1.0)
    assert compose(["recipe=toy", "precision=bf16"]).precision.experts == "bf16"


def test_values_are_typed_by_the_schema():
    words = ["train.steps=1e3", "optim.lr=1", "logging.wandb=off", "run.name=7", "train.compile=true"]
    cfg = compose(["recipe=toy", *words])
    assert (cfg.train.steps, type(cfg.train.steps)) == (1000, int)
    assert (cfg.optim.lr, type(cfg.optim.lr)) == (1.0, float)
    assert (cfg.logging.wandb, cfg.run.name, cfg.train.compile) == ("off", "7", True)


def test_a_key_that_no_yaml_names_can_be_set():
    assert compose(["recipe=toy", "model.fope_pad_sin=0"]).model.fope_pad_sin == 0.0


def test_references_between_keys():
    cfg = compose(["recipe=toy", "optim.warmup_steps=${train.log_every}", "train.log_every=7"])
    assert cfg.optim.warmup_steps == 7


def test_weights_of_sources():
    phases = "data.sources.code.phases"
    assert compose(["recipe=toy", f"{phases}.stable=649"]).data.sources["code"].phases["stable"] == 649.0
    assert compose(["recipe=toy", f"{phases}={{stable: 649}}"]).data.sources["code"].phases == {
        "stable": 649.0,
        "anneal": 48.0,
    }
    (fault,) = faults("recipe=toy", f"{phases}.stabl=3")
    assert (fault.where, fault.allowed) == (f"{phases}.stabl", ("stable", "anneal"))
    assert "'stable'" in fault.text


def test_the_resolved_yaml_reads_back_equal(tmp_path):
    cfg = compose(["recipe=toy", "optim.lr=1e-5", "run.dir='a: b'", "model=intern_s1_pro"])
    assert load(write(tmp_path / "c.yaml", to_yaml(cfg))) == cfg


# -- mistakes --------------------------------------------------------------------------------------------------------

MODELS = (
    "grouped_30b_a3b", "intern_s1", "intern_s1_pro", "intern_s1_pro_text", "intern_s1_text", "qwen3_30b_a3b", "toy",
    "toy_gpu", "toy_multimodal", "vision_contrastive", "vision_toy",
)  # fmt: skip
RECIPES = (
    "cpt_117b_32gpu", "cpt_117b_32gpu_rehearsal", "cpt_30b_1gpu_offload", "cpt_30b_1gpu_offload_rehearsal",
    "cpt_30b_8gpu", "cpt_30b_8gpu_rehearsal", "cpt_6t", "cpt_6t_256", "cpt_6t_256_rehearsal", "cpt_6t_media",
    "cpt_6t_media_rehearsal", "cpt_6t_rehearsal", "lora_30b_1gpu", "lora_intern_s1_8xh100",
    "lora_intern_s1_pro_8xh200", "lora_intern_s1_pro_8xh200_all", "lora_intern_s1_pro_8xh200_rehearsal", "lora_toy",
    "rl_intern_s1_pro", "rl_intern_s1_pro_rehearsal", "rl_science", "rl_science_toy", "rl_tools_toy",
    "rl_tools_toy_calls", "rl_toy", "sft_intern_s1_pro", "sft_science_toy", "sft_toy", "toy", "toy_contrastive",
    "toy_ep8", "toy_gpu", "toy_multimodal", "upcycle_study", "vision_contrastive", "vision_contrastive_toy",
)  # fmt: skip
GROUPS = ("checkpoint", "data", "logging", "lora", "model", "optim", "parallel", "precision", "recipe")
# words after recipe=toy, the fault's key, its value, what it offers: a tuple, or the start of a text
MISTAKES = [
    ("modle=toy", "modle", None, ("model",)),
    ("model=intern_s2", "model", "intern_s2", MODELS),
    ("model=xyz", "model", "xyz", MODELS),
    (["model=toy", "model=intern_s1"], "model", ("toy", "intern_s1"), "one of them"),
    ("cluster=h100", "cluster", None, GROUPS),
    ("optim.lrr=1", "optim.lrr", None, ("optim.lr",)),
    ("optm.lr=1", "optm.lr", None, ("optim.lr",)),
    ("lr=1", "lr", None, ("optim.lr",)),
    ("run.zzz=1", "run.zzz", None, ("run.name", "run.dir")),
    ("zzz.zzz=1", "zzz.zzz", None, tuple(f"{name}." for name in sorted([*GROUPS[:-1], "rl", "run", "train"]))),
    ("optim.lr.x=1", "optim.lr.x", None, ("optim.lr",)),
    ("run=5", "run", "5", ("run.name", "run.dir")),
    ("+new.key=1", "new.key", "+new.key=1", None),
    ("+optim.lrr=1", "optim.lrr", "+optim.lrr=1", "did you mean 'optim.lr'?"),
    ("++optim.lr=1", "optim.lr", "++optim.lr=1", "use optim.lr=1"),
    ("+optim=sgd", "optim", "+optim=sgd", "use optim=sgd"),
    ("~optim", "optim", "~optim", "remove it"),
    ("~optim.lr", "optim.lr", "~optim.lr", "remove it"),
    ("optim@x=sgd", "optim", "optim@x=sgd", "use optim=sgd"),
    ("optim.lr=1,2", "optim.lr", "1,2", "a number"),
    ("optim.lr=range(1,3)", "optim.lr", "range(1,3)", "a number"),
    ("optim.betas=0.9, 0.95", "optim.betas", "0.9, 0.95", "write a list as optim.betas=[0.9,0.95]"),
    ("run.dir=a seed=c optim.lr=1", "run.dir", "run.dir=a seed=c optim.lr=1", "run.dir=a seed=c optim.lr=1"),
    ("run.dir=${now:%Y}", "run.dir", "${now:%Y}", "write it out"),
    ("run.dir=${oc.env:HOME}", "run.dir", "${oc.env:HOME}", "write it out"),
    ("train.log_every=${train.stepz}", "train.log_every", "${train.stepz}", ("${train.steps}",)),
    ("train.steps=${train.stepz}", "train.steps", "${train.stepz}", "write it out"),
    ("train.steps=abc", "train.steps", "abc", "a whole number"),
    ("train.steps=1.5", "train.steps", 1.5, "a whole number"),
    ("train.steps=true", "train.steps", True, "a whole number"),
    ("train.steps=null", "train.steps", None, "a whole number"),
    ("optim.lr=fast", "optim.lr", "fast", "a number"),
    ("optim.parts.text.lr=fast", "optim.parts.text.lr", "fast", "a number or null"),
    ("model.image_token=[1]", "model.image_token", [1], "a whole number or null"),
    ("model.vision", "model.vision", "model.vision", ("model.vision=null",)),
    ("~recipe", "recipe", "~recipe", "remove it"),
    ("train.compile=maybe", "train.compile", "maybe", "true or false"),
    ("optim.betas=0.9", "optim.betas", 0.9, "a list"),
    ("optim.betas=[a,b]", "optim.betas", ["a", "b"], "a list whose items are each a number"),
    ("data.phases=3", "data.phases", 3, "a mapping"),
    ("run.dir=[a]", "run.dir", "[a]", "text"),
    ("hydra.run.dir=x", "hydra.run.dir", None, ("run.dir",)),
]


@pytest.mark.parametrize(("words", "where", "value", "allowed"), MISTAKES, ids=[str(words) for words, *_ in MISTAKES])
def test_one_mistake_is_one_fault(words, where, value, allowed):
    (fault,) = faults("recipe=toy", *([words] if isinstance(words, str) else words))
    assert (fault.where, fault.value) == (where, value)
    assert fault.allowed[: len(allowed)] == allowed if allowed else fault.allowed is None
    assert where in fault.text


@pytest.mark.parametrize(
    ("words", "value", "allowed"),
    [
        ([], None, RECIPES),
        (["recipe=toi"], "toi", RECIPES),
        (["recipe=null"], "null", RECIPES),
        (["~recipe"], "~recipe", RECIPES),
    ],
)
def test_a_recipe_has_to_be_named(words, value, allowed):
    (fault,) = faults(*words)
    assert (fault.where, fault.value, fault.allowed) == ("recipe", value, allowed)


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["recip=toy"], "'recipe'"),
        (["recipe=toi"], "'toy'"),
        (["toy"], "'recipe=toy'"),
        (["recipe=toy", "model=intern_s2"], "'intern_s1'"),
        (["recipe=toy", "optim.lrr=1"], "'optim.lr'"),
    ],
)
def test_a_misspelt_word_is_suggested(words, suggested):
    (fault,) = faults(*words)
    assert fault.text.count(suggested) == 1  # in quotes, unlike the list of all that is allowed


def test_all_mistakes_of_a_command_are_reported_at_once():
    words = ["recipe=tyo", "modle=toy", "optim=adamm", "optim.lrr=1", "+new.key=1", "train.steps=abc", "optim.eps=-1"]
    words += ["data.seq_len=99999", "parallel.ep=3", "train.global_batch=7", "optim.schedule=wds"]
    words += ["model.num_kv_heads=3"]
    found = [fault.where for fault in faults(*words, "data=synthetic")]
    assert sorted(found) == sorted(word.partition("=")[0].lstrip("+") for word in words)


def test_after_a_misspelt_word_the_rest_is_checked_as_if_the_suggestion_had_been_typed():
    (fault,) = faults("recipe=toy", "trian.micro_batch=5", "train.global_batch=10")
    assert (fault.where, fault.allowed) == ("trian.micro_batch", ("train.micro_batch",))
    (fault,) = faults("recipe=toy", "data=synthetic", "model=intern_s1_pr", "data.seq_len=100000")
    assert (fault.where, fault.value, fault.allowed) == ("model", "intern_s1_pr", MODELS)
    assert "'intern_s1_pro'" in fault.text


@pytest.mark.parametrize(
    "words",
    [
        ["data=cpt6t"],  # its images need towers
        ["data=vision"],  # pairs need another objective
        ["model=vison_toy"],  # its captions are shorter than the mixture's samples
        ["parallel=ep8_fsd"],
        ["recipe=vision_contrastive_to", "model=toy"],
        ["optim.part.vision.freeze=true"],
        ["data.sources.code.tokesn=4"],
        ["model.visoin.width=64"],
    ],
    ids=" ".join,
)
def test_what_follows_from_a_guess_is_not_a_mistake(words):
    recipe = [] if words[0].startswith("recipe=") else ["recipe=toy"]
    (fault,) = faults(*recipe, *words)
    assert fault.where == words[0].partition("=")[0]
    _, further = faults(*recipe, *words, "train.steps=-1")
    assert further.where == "train.steps"


@pytest.mark.parametrize("key", ["model.vision.width", "model.signals.width", "model.embedding.width"])
def test_a_key_of_a_section_that_is_null_names_options_that_set_it(key):
    (fault,) = faults("recipe=toy", f"{key}=64")
    assert (fault.where, fault.value) == (key, 64)
    assert fault.allowed
    for option in fault.allowed:
        words = [RECIPE_OF[option]] if option in RECIPE_OF else ["recipe=toy", "data=synthetic", "data.seq_len=64"]
        assert getattr(compose([*words, option], world_size=None).model, key.split(".")[1]) is not None


def test_world_size_is_checked():
    compose(["recipe=toy", "train.micro_batch=4"], world_size=2)
    (fault,) = faults("recipe=toy", "train.micro_batch=4", world_size=3)
    assert (fault.where, fault.value, fault.allowed) == ("train.global_batch", 8, (12,))
    assert "4 x 3 = 12" in fault.text


# -- a user's own directories ----------------------------------------------------------------------------------------


def test_a_users_recipe_gives_the_run_its_name_and_may_build_on_another(tmp_path):
    write(
        tmp_path / "with space/recipe/small.yaml",
        "# @package _global_\ndefaults:\n  - toy\n  - override /model: tiny\ntrain:\n  steps: 50\n",
    )
    write(tmp_path / "other/model/tiny.yaml", "defaults:\n  - toy\n  - _self_\nnum_layers: 1\n")
    cfg = compose(["recipe=small"], config_dirs=[tmp_path / "with space", tmp_path / "other"])
    assert (cfg.run.name, cfg.train.steps, cfg.model.num_layers, cfg.optim.lr) == (
        "small",
        50,
        1,
        compose(["recipe=toy"]).optim.lr,
    )


def test_a_users_recipes_and_options_are_suggested(tmp_path):
    write(tmp_path / "recipe/proteins.yaml", "# @package _global_\n")
    write(tmp_path / "model/enzyme.yaml", "defaults: [toy]\n")
    recipe, model = faults("recipe=protein", "model=enzymes", config_dirs=[tmp_path])
    assert (recipe.where, recipe.allowed) == ("recipe", tuple(sorted([*RECIPES, "proteins"])))
    assert "'proteins'" in recipe.text
    assert model.where == "model"
    assert "'enzyme'" in model.text


def test_a_users_own_group(tmp_path):
    write(tmp_path / "site/fast.yaml", "# @package _global_\ntrain:\n  log_every: 3\n")
    assert compose(["recipe=toy", "+site=fast"], config_dirs=[tmp_path]).train.log_every == 3
    (fault,) = faults("recipe=toy", "site=fast", config_dirs=[tmp_path])
    assert (fault.where, fault.value, fault.allowed) == ("site", "fast", "+site=fast")


def test_all_mistakes_in_a_users_recipe_are_reported(tmp_path):
    text = "# @package _global_\ntrain:\n  stpes: 5\n  seed: x\noptim: 3\nzzz: 1\nrun:\n  dir: ${now:%Y}\n"
    write(tmp_path / "recipe/bad.yaml", text)
    found = [(fault.where, fault.value) for fault in faults("recipe=bad", "optim.name=sgdd", config_dirs=[tmp_path])]
    for wanted in (("train.stpes", None), ("train.seed", "x"), ("zzz", None), ("optim", 3), ("run.dir", "${now:%Y}")):
        assert wanted in found


BROKEN = [
    ("train: {steps: 5}\n", "recipe/bad.yaml", "# @package _global_"),
    ("# @package _global_\ntrain: [\n", "bad.yaml", "line 3"),
    ("# @package _global_\ndefaults:\n  - override /model: enzym\n", "model", "'enzyme'"),
    ("# @package _global_\ndefaults:\n  - override /modle: toy\n", "bad.yaml", "'- override /model: toy'"),
    ("# @package _global_\nlogging: {wandb: off}\n", None, None),
]


@pytest.mark.parametrize(("text", "where", "offers"), BROKEN)
def test_a_broken_recipe_is_named(tmp_path, text, where, offers):
    write(tmp_path / "recipe/bad.yaml", text)
    write(tmp_path / "model/enzyme.yaml", "defaults: [toy]\n")
    if where is None:  # YAML reads a bare `off` as false
        assert compose(["recipe=bad"], config_dirs=[tmp_path]).logging.wandb == "off"
        return
    (fault,) = faults("recipe=bad", config_dirs=[tmp_path])
    assert where in fault.where
    assert offers in fault.text


def test_a_directory_that_is_missing_or_hides_files_is_refused(tmp_path):
    write(tmp_path / "model/toy.yaml", "num_layers: 1\n")
    write(tmp_path / "config.yaml", "")
    found = faults("recipe=toy", config_dirs=[tmp_path, tmp_path / "nowhere"])
    places = [str(tmp_path / "config.yaml"), str(tmp_path / "model/toy.yaml"), "--config-dir"]
    assert [fault.where for fault in found] == places
    assert found[-1].value == str(tmp_path / "nowhere")


def test_a_resolved_file_is_checked_like_a_command_line(tmp_path):
    text = to_yaml(compose(["recipe=toy"]))
    untyped = text.replace("lr: ", "lrr: ", 1).replace("seed: 0", "seed: x")
    assert [(fault.where, fault.value) for fault in load_faults(tmp_path, untyped)] == [
        ("optim.lrr", None),
        ("train.seed", "x"),
    ]
    assert [fault.where for fault in load_faults(tmp_path, text.replace("ep: 1", "ep: 2"))] == ["parallel.ep"]
    for content in ("- a\n", "a: [\n", "\0"):
        (fault,) = load_faults(tmp_path, content)
        assert fault.where == str(tmp_path / "c.yaml")
        assert fault.where in fault.text
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nowhere.yaml")
    assert caught.value.where == str(tmp_path / "nowhere.yaml")


# -- python -m trainer -----------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Configurations that reach training, which is replaced: these tests are about what comes before it."""
    import types

    seen = []
    module = types.ModuleType("trainer.run.process")
    module.train = lambda cfg, run: seen.append(cfg) or 0
    monkeypatch.setitem(sys.modules, "trainer.run.process", module)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return seen


def test_main_trains_a_configuration_that_holds(trained, tmp_path):
    assert entry.main(["recipe=toy", "optim.lr=1e-3"]) == 0
    write(tmp_path / "mine/recipe/x.yaml", "# @package _global_\n")
    assert entry.main(["--config-dir", "mine", "recipe=x"]) == 0
    resolved = write(tmp_path / "c.yaml", to_yaml(trained[0]))
    assert entry.main(["--resolved", str(resolved)]) == 0
    assert trained[0].optim.lr == 1e-3
    assert trained[1].run.name == "x"
    assert trained[2] == trained[0]


def test_main_reports_mistakes_in_lines_and_returns_2(trained, capsys):
    assert entry.main(["recipe=toy", "optim.lrr=1", "train.steps=0"]) == 2
    unknown, too_small = capsys.readouterr().err.splitlines()
    error_line(unknown, "optim.lrr")
    error_line(too_small, "train.steps=0")
    assert entry.main(["recipe=toy", "--resolved", "x.yaml"]) == 2
    assert not trained


def test_under_torchrun_one_rank_of_a_machine_reports(trained, monkeypatch, capsys):
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(entry, "TIME_TO_REPORT", 0)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert entry.main(["recipe=toy", "train.global_batch=9"]) == 2
        assert ("8 x 2 = 16" in capsys.readouterr().err) == (rank == "0")
    assert entry.main(["recipe=toy", "train.micro_batch=4"]) == 0
    assert len(trained) == 1


def test_help_lists_groups_and_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        entry.main(["--help"])
    assert stopped.value.code == 0
    assert "model=grouped_30b_a3b|intern_s1|" in capsys.readouterr().out


def test_a_bad_configuration_ends_the_process_before_torch_is_imported():
    """In a process of its own: exit code 2, the lines, no traceback, and no torch among the modules."""
    program = (
        "import sys, runpy\n"
        "sys.argv = ['trainer', 'recipe=toy', 'optim.lrr=1', 'parallel.ep=2']\n"
        "try:\n    runpy.run_module('trainer', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, sorted({'torch', 'numpy', 'datasets', 'wandb', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "2 []"
    assert [line.startswith("error: ") for line in done.stderr.splitlines()] == [True, True]
