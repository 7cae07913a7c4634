"""Faults in a user's recipes: each with its file, its line and what would work, before anything is composed."""

import re

import pytest

from trainer.config.checks.validate import validate
from trainer.config.compose import compose, load, to_yaml
from trainer.config.errors import ConfigError
from trainer.config.recipes.files import check_recipes
from trainer.config.recipes.groups import list_groups, users

HEAD = "# @package _global_\n"
LIBRARY = re.compile(r"hydra(?!: no such key)|omegaconf|dictconfig|listconfig|full_key|object_type|Traceback", re.I)


@pytest.fixture
def place(tmp_path):
    """Writes files: a path below the user's directory -> text or bytes."""

    def write(**files):
        for path, text in files.items():
            file = tmp_path / f"{path.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return write


def found(directory, path="recipe/x"):
    faults = check_recipes([path], list_groups([directory]), users([directory])).faults
    for fault in faults:
        assert not LIBRARY.search(fault.text.replace(str(directory), ""))
        assert "\n" not in fault.text
    return faults


CIRCLES = [
    ({"recipe__x": "defaults: [y, _self_]", "recipe__y": "defaults: [x, _self_]"},
     ("recipe=x", "recipe=y", "recipe=x")),
    ({"recipe__x": "defaults: [x]"}, ("recipe=x", "recipe=x")),
    ({"recipe__x": "defaults: [/recipe/x]"}, ("recipe=x", "recipe=x")),
    ({"recipe__x": "defaults: [y]", "recipe__y": "defaults: [z]", "recipe__z": "defaults: [y]"},
     ("recipe=y", "recipe=z", "recipe=y")),
    ({"recipe__x": "defaults: [/site: s]", "site__s": "defaults: [/recipe/x]"}, ("recipe=x", "site=s", "recipe=x")),
    ({"recipe__x": "defaults: [override /model: a]", "model__a": "defaults: [b]", "model__b": "defaults: [a]"},
     ("model=a", "model=b", "model=a")),
]  # fmt: skip


@pytest.mark.parametrize(("files", "circle"), CIRCLES, ids=["->".join(circle) for _, circle in CIRCLES])
def test_a_circle_of_recipes_is_named(files, circle, place):
    directory = place(**{path: text if path.startswith("model") else HEAD + text for path, text in files.items()})
    (fault,) = found(directory)
    assert fault.value == circle
    assert all(name in fault.text for name in circle)
    # and the whole command reports this fault alone
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=x"], config_dirs=[directory])
    assert [one.value for one in caught.value.faults] == [circle]


def test_two_ways_to_one_recipe_are_no_circle(place):
    directory = place(recipe__x=f"{HEAD}defaults: [y, z]", recipe__y=f"{HEAD}defaults: [w]",
                      recipe__z=f"{HEAD}defaults: [w]", recipe__w=f"{HEAD}train: {{steps: 3}}")  # fmt: skip
    assert found(directory) == []


def test_no_recipe_is_offered_that_would_close_a_circle(place):
    directory = place(recipe__x=f"{HEAD}defaults: [y, _self_]", recipe__y=f"{HEAD}defaults: [othr]",
                      recipe__other=f"{HEAD}defaults: [/site: s]", site__s=f"{HEAD}defaults: [/recipe/x]",
                      recipe__others="- a", recipe__free=f"{HEAD}defaults: [toy]")  # fmt: skip
    (fault,) = found(directory)
    assert {"free", "toy"} <= {*fault.allowed}
    assert not {"x", "y", "other"} & {*fault.allowed}
    assert "did you mean 'others'?" in fault.text
    (fault,) = found(place(site__s=f"{HEAD}defaults: [t]"), "site/s")
    assert (fault.value, fault.allowed) == ("t", "remove it")


# the lines after the header, the line at fault, what is offered: the end of the text
BROKEN = [
    ("defaults: [nowhere]", 2, "upcycle_study, vision_contrastive or vision_contrastive_toy"),
    ("defaults: [othr]", 2, "did you mean 'other'?"),
    ("defaults:\n  - override /model: toyy", 3, "did you mean 'toy'?"),
    ("defaults:\n  - override /optimizer: adamw", 3, "did you mean '- override /optim: adamw'?"),
    ("defaults:\n  - override /zzz: adamw", 3, "groups: checkpoint, data, logging, lora, model, optim, parallel, "
     "precision, recipe, site"),
    ("defaults:\n  - override model: toy", 3, "write - override /model: toy"),
    ("defaults:\n  - model: toy", 3, "write - override /model: toy"),
    ("defaults:\n  - /model: toy", 3, "write - override /model: toy"),
    ("defaults:\n  - override /recipe: toy", 3, "write - toy"),
    ("defaults:\n  - override /site: fast", 3, "write - /site: fast"),
    ("defaults:\n  - override /model: toy\n  - toy", 4, "move it above the first override"),
    ("defaults:\n  - override /model: toy\n  - override /model: toy_gpu", 4, "keep one"),
    ("defaults: [_self_, toy, _self_]", 2, "keep one"),
    ("defaults: {model: toy}", 2, "write a list, such as defaults: [toy, _self_]"),
    ("defaults: toy", 2, "write a list, such as defaults: [toy, _self_]"),
    ("defaults: [5]", 2, "write a name, or - override /model: toy"),
    ("defaults:\n  - {override /model: toy, override /optim: sgd}", 3, "write a name, or - override /model: toy"),
    ("defaults:\n  - override /model: ???", 3, "such as - override /model: toy"),
    ("train: [1, 2]", 2, "give its keys, such as train: {steps: 1000}"),
    ("train:", 2, "give its keys, such as train: {steps: 1000}"),
    ("train: 3", 2, "give its keys, such as train: {steps: 1000}"),
    ("data:\n  sources: [a]", 3, "max_epochs, prefix, phases"),
    ("data:\n  phases:\n    stable: [a]", 4, "give its keys: data.phases.stable.tokens"),
    ("train: {steps: {a: 1}}", 2, "use a whole number"),
    ("optim:\n  betas: {a: 1}", 3, "use a list such as [0.9, 0.95]"),
    ("train.steps: 4", 2, "indent it, as train: {steps: 4}"),
    ("hydra: {run: {dir: x}}", 2, "parallel., precision., rl., run. or train."),
    ("run:\n  name: 2026_11_29", 3, "quote it: name: '2026_11_29'"),
    ("run:\n  dir: 1e3", 3, "quote it: dir: '1e3'"),
    ("run:\n  dir: 0x10", 3, "quote it: dir: '0x10'"),
    ("run:\n  name: yes", 3, "quote it: name: 'yes'"),
    ("parallel:\n  schedule: null", 3, "parallel.schedule=null does not exist; use 1f1b"),
    ("optim:\n  offload: off", 3, "optim.offload=off does not exist; use none, cpu or nvme"),
    ("run:\n  name: 1:30", 3, "quote it: name: '1:30'"),
    ("train:\n\tsteps: 3", 3, "a tab; indent with spaces"),
    ("train: {steps: 3, steps: 4}", 2, "steps is given twice; keep one"),
    ("train: {steps: [", 2, "not valid YAML: "),
    ("train: {steps: '${train.log'}", 2, "write it out, or refer to a key: ${a.b}"),
    ("train:\n  steps: ${train.log", 3, "write it out, or refer to a key: ${a.b}"),
    ("# caf\xe9".encode("latin-1"), 2, "save the file as UTF-8"),
    ("defaults:\n  - override /modle: toy", 3, "did you mean '- override /model: toy'?"),
    ("defaults:\n  - toy\n  - overide /model: toy", 4, "write - override /model: toy"),
    ("defaults:\n  - override /model:toy", 3, "or - override /model: toy"),
    ("defaults:\n  - override /model toy", 3, "or - override /model: toy"),
    ("defaults:\n  - override /model@x: toy", 3, "write - override /model: toy"),
    ("train: {steps: 3}\nDefaults: [toy]", 3, "did you mean 'defaults'?"),
    ("default: [toy]", 2, "did you mean 'defaults'?"),
    ("a: &x [*x]", 2, "write its value out"),
    ("train: &x\n  steps: {a: *x}", 2, "write its value out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "offered"), BROKEN, ids=[str(text)[:40] for text, *_ in BROKEN])
def test_a_broken_recipe_is_one_fault_with_file_and_line(text, line, offered, place):
    text = HEAD.encode() + text if isinstance(text, bytes) else HEAD + text
    directory = place(recipe__x=text, recipe__other=HEAD, site__fast=HEAD)
    (fault,) = found(directory)
    assert fault.text.startswith(f"{directory}/recipe/x.yaml, line {line}: ")
    assert offered in fault.text
    assert fault.allowed is not None


@pytest.mark.parametrize("text", ["", "train: {steps: 3}", "# a comment\n# @package _global_\n"])
def test_a_recipe_has_its_first_line(text, place):
    (fault,) = found(place(recipe__x=text))
    assert (fault.where, fault.allowed) == ("recipe/x.yaml", HEAD.strip())


@pytest.mark.parametrize("package", ["_globl_", "global", "tran", "_global"])
def test_a_package_that_does_not_exist_is_not_taken_for_a_key(package, place):
    directory = place(recipe__x=f"# @package {package}\ntrain: {{steps: 3}}")
    (fault,) = found(directory)
    assert (fault.where, fault.value, fault.allowed) == ("recipe/x.yaml", package, HEAD.strip())
    assert fault.text.startswith(f"{directory}/recipe/x.yaml, line 1: ")


def test_a_byte_order_mark_is_named(place):
    (fault,) = found(place(recipe__x=b"\xef\xbb\xbf" + HEAD.encode()))
    assert fault.value == b"\xef\xbb\xbf"


@pytest.mark.parametrize("text", ["- a", "hello"])
def test_a_recipe_is_a_mapping(text, place):
    (fault,) = found(place(recipe__x=text))
    assert fault.allowed == "keys and values"


def test_sound_recipes_have_no_fault(place):
    own = "defaults:\n  - toy\n  - /site: fast\n  - optional override /model: gone\n  - override /optim: sgd\n"
    own += "run: {name: 7, dir: 2026-11-29}\ntrain: {steps: '${train.log_every}'}\nlogging: {wandb: off}\n"
    directory = place(recipe__x=HEAD + own, site__fast=f"{HEAD}train: {{log_every: 3}}", model__own="defaults: [toy]")
    assert found(directory) == []
    cfg = compose(["recipe=x", "model=own"], config_dirs=[directory])
    assert (cfg.run.name, cfg.run.dir, cfg.train.steps, cfg.logging.wandb) == ("7", "2026-11-29", 3, "off")


def test_faults_of_the_composed_configuration_name_the_file(place):
    directory = place(recipe__x=f"{HEAD}train:\n  stpes: 3\n  seed: x\n  log_every: ${{train.step}}\n"
                                f"  steps: ${{train.eval_every}}\n  eval_every: ${{train.steps}}\n")  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=x"], config_dirs=[directory])
    assert [(fault.where, fault.value, fault.allowed) for fault in caught.value.faults] == [
        ("train.steps", "${train.eval_every}", "write it out, or refer to a key: ${a.b}"),
        ("train.log_every", "${train.step}", ("${train.steps}",)),
        ("train.stpes", None, ("train.steps",)),
        ("train.seed", "x", "a whole number"),
    ]
    directory = place(recipe__x=f"{HEAD}train:\n  stpes: 3\n  seed: x\n  log_every: 0\n")
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=x"], config_dirs=[directory])
    lines = [fault.text.removeprefix(f"{directory}/recipe/x.yaml, line ")[0] for fault in caught.value.faults]
    assert list(zip(lines, [fault.where for fault in caught.value.faults], strict=True)) == [
        ("3", "train.stpes"), ("4", "train.seed")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("train: {steps: '7'}", "7"),
        ("optim: {lr: '1e-3'}", "1e-3"),
        ("model: {image_token: '7'}", "7"),
        ("train: {compile: 'true'}", "true"),
    ],
)
def test_a_number_in_quotes_is_offered_without_them(text, bare, place):
    directory = place(**{"recipe/x": f"# @package _global_\ndefaults: [toy]\n{text}\n"})
    with pytest.raises(ConfigError) as caught:
        compose(["recipe=x"], config_dirs=[directory])
    (fault,) = caught.value.faults
    assert fault.allowed == bare
    assert f"use {bare} without quotes" in fault.text


def test_two_directories_with_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "recipe").mkdir(parents=True)
        (tmp_path / name / "recipe/x.yaml").write_text(HEAD)
    with pytest.raises(ConfigError) as caught:
        users([tmp_path / "a", tmp_path / "b"])
    assert caught.value.where == str(tmp_path / "b/recipe/x.yaml")


def test_a_resolved_file_names_the_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(compose(["recipe=toy"])).replace("name: toy\n", "name: 1_0\n"))
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [(fault.where, fault.text.partition(":")[0]) for fault in caught.value.faults] == [
        ("run.name", f"{file}, line 2")]  # fmt: skip


# -- ranges ----------------------------------------------------------------------------------------------------------

WIDEST = 2**63 - 1
RANGES = [
    ("train.seed", 2**64, f"0 to {2**64 - 1}"),
    ("train.seed", 10**20, f"0 to {2**64 - 1}"),
    ("train.seed", -1, "0 or more"),
    ("train.log_every", 2**63, f"1 to {WIDEST}"),
    ("data.workers", 2**63, f"0 to {WIDEST}"),
    ("parallel.ep", 10**30, f"0 to {WIDEST}"),
    ("train.steps", WIDEST, f"{WIDEST // 2048} or less"),
    ("train.global_batch", 2**60, f"{WIDEST // 256} or less"),
    ("parallel.timeout_s", 1e10, "1e+09 or less"),
    ("optim.lr", 1e39, "1.2e-38 to 3.4e+38"),
    ("optim.eps", 1e-50, "1.2e-38 to 3.4e+38"),
    ("model.norm_eps", 1e-60, "1.2e-38 to 3.4e+38"),
    ("optim.weight_decay", 1e300, "0 to 3.4e+38"),
]


@pytest.fixture(scope="module")
def toy():
    return compose(["recipe=toy", "data=synthetic"])


@pytest.mark.parametrize(("key", "value", "allowed"), RANGES, ids=[f"{key}={value}" for key, value, _ in RANGES])
def test_numbers_that_the_code_cannot_hold_are_refused(toy, key, value, allowed):
    section, name = key.split(".")
    before = getattr(getattr(toy, section), name)
    try:
        setattr(getattr(toy, section), name, value)
        assert [(fault.where, fault.value, fault.allowed) for fault in validate(toy, 1)] == [(key, value, allowed)]
        setattr(getattr(toy, section), name, 2**64 - 1 if key == "train.seed" else before)
        assert validate(toy, 1) == []
    finally:
        setattr(getattr(toy, section), name, before)


def test_remedies_for_large_numbers_do_not_take_long(toy):
    train, model = toy.train, toy.model
    toy.train = type(train)(**{**vars(train), "global_batch": 10**12 + 39, "micro_batch": 10**9})
    toy.model = type(model)(**{**vars(model), "num_heads": 10**18, "num_kv_heads": 10**15 - 1})
    try:
        assert {fault.where for fault in validate(toy, 1)} == {"train.global_batch", "model.num_kv_heads"}
    finally:
        toy.train, toy.model = train, model
