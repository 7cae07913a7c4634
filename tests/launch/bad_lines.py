"""Command lines with one mistake each, drawn with a seed from tables of commands, options, keys, values and recipes."""

from __future__ import annotations

import importlib
import random
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from launch.cli import COMMANDS, module_of
from trainer.config import coerce
from trainer.config.checks.ranges import NOT_NEGATIVE, POSITIVE
from trainer.config.command_line import BadValue, Parser
from trainer.config.recipes.groups import KEYS, list_groups
from trainer.config.recipes.values import example

T = TypeVar("T")
HEAD = "# @package _global_\n"
BASE = ["config", "recipe=toy", "data=synthetic"]
POLICY = ["config", "recipe=rl_toy"]  # the base of keys that have no use with another objective
SERVER = [*POLICY, "rl.engine=lmdeploy", "rl.exact=false", "rl.url=http://localhost:1"]  # of rl.bucket_mb
RAY, OF_RAY = [*POLICY, "rl.engine=ray"], ("rl.rollout_workers", "rl.ray_cpus", "rl.ray_gpus", "rl.ray_address")
# Keys that have no use with data=synthetic, or without towers, chats or a server, whatever their value
USELESS = (
    "data.name",
    "rl.url",
    "rl.kl_reference",
    "data.chat_",
    "optim.parts.",
    "model.image_token",
    "model.signal_token",
)
GROUPS = list_groups()
FITTING = {
    "data": ("synthetic", "toy_mixture"),
    "recipe": ("toy", "toy_contrastive"),
    "model": ("toy", "intern_s1"),
    "parallel": ("single", "fsdp"),
    "optim": ("adamw",),
    "lora": ("none",),
    "precision": ("fp32", "bf16"),
}
# What a command needs besides its mistake.
NEEDED = {
    "layout": ["--world=1"],
    "tokenize": ["out", "--tokenizer=t"],
    "export": ["a", "b"],
    "upcycle": ["a", "b"],
    "science": ["out"],
    "captions": ["out", "a.pdf"],
    "inspect": ["a"],
    "completion": ["bash"],
    "generate": ["a", "b"],
}
WRONG = {
    int: [
        "abc",
        "1.5",
        "true",
        "null",
        "",
        "[1]",
        "{a: 1}",
        "1,2",
        "3;4",
        "0x10",
        "１",
        "1 2",
        "1e999",
        "nan",
        "9" * 5000,
    ],
    float: ["fast", "true", "null", "", "[1]", "0,5", "1e-3$", "--", "nan", "inf", "1e39", "-1e39"],
    bool: ["maybe", "yes", "1", "null", "", "[true]", "on"],
    list: ["0.9", "0.9,0.95", "[a,b]", "null", "[0.9", "{a: 1}", "[0.9;0.95]", "[[0.9]]"],
    dict: ["3", "null", "[a]", "text", "{a}"],
}
# after a recipe's first line
RECIPES: list[str | bytes] = [
    "defaults: [{name}]",
    "defaults: [nowhere]",
    "defaults: [toi]",
    "defaults: {model: toy}",
    "defaults: toy",
    "defaults: [3]",
    "defaults:\n  - override /optimizer: sgd",
    "defaults:\n  - override /model: toyy",
    "defaults:\n  - override model: toy",
    "defaults:\n  - model: toy",
    "defaults:\n  - /optim: sgd",
    "defaults:\n  - override /optim: sgd\n  - toy",
    "defaults: [other]",
    "train: [1]",
    "train:",
    "train: 7",
    "train: {stpes: 3}",
    "train: {steps: abc}",
    "train: {steps: 0}",
    "train: {steps: '${train.stpes}'}",
    "train: {steps: '${train.steps}'}",
    "train: {steps: '${train.steps'}",
    "train: {steps: '${oc.env:HOME}'}",
    "train.steps: 3",
    "train: {steps: 3, steps: 4}",
    "train: {steps: [",
    "train:\n\tsteps: 3",
    "optim: {betas: {a: 1}}",
    "optim: {betas: 3}",
    "optim: {name: adam}",
    "optim: {schedule: wds}",
    "zzz: 3",
    "hydra: {a: 1}",
    "run: {name: 1_0}",
    "run: {name: 2026_11_29}",
    "run: {dir: 1e3}",
    "run: {dir: yes}",
    "run: {name: a b}",
    "run: [a]",
    "logging: {wandb: maybe}",
    "logging: offline",
    "data: {sources: [a]}",
    "data: {workers: -1}",
    "data: {workers: 1e30}",
    "model: {hidden_size: 2.5}",
    "model: {hidden_sise: 64}",
    "parallel: {timeout_s: 1e300}",
    "precision: {experts: fp9}",
    b"# caf\xe9",
    b"\xff\xfe",
    "- a",
    "just words",
    "a: &x [*x]",
    "train: {seed: 18446744073709551616}",
    "train: !!python/name:os {}",
    "defaults:\n  - override /modle: toy",
    "defaults:\n  - toy\n  - overide /model: toy",
    "defaults:\n  - toy\n  - override /model:toy",
    "defaults:\n  - toy\n  - override /model@x: toy",
    "Defaults: [toy]",
    "optim: {LR: 1e-3}",
    "precision: {experts: FP32}",
]
# whole files
HEADS: list[str | bytes] = [
    "defaults: [toy]\ntrain: {steps: 3}\n",
    "# my recipe\n# @package _global_\ndefaults: [toy]\n",
    "# @package _globl_\ndefaults: [toy]\n",
    b"\xef\xbb\xbf# @package _global_\ndefaults: [toy]\n",
]


@dataclass
class Case:
    """`octavo` + base + bad. files: below the directory `mine`, which base then names."""

    kind: str
    base: list[str]
    bad: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    label: str = ""  # what distinguishes it, beside its words

    @property
    def words(self) -> list[str]:
        return [*self.base, *self.bad]

    def __str__(self) -> str:
        return f"{self.kind}: {shlex.join(word[:40] for word in self.words)} {self.label!r}"


def cases(count: int, seed: int) -> list[Case]:
    """`count` cases, of all kinds in turn."""
    draw = random.Random(seed)
    kinds = [_misspelt_keys, _wrong_values, _out_of_range, shapes, _groups, _options, _commands, _recipes]
    return take_in_turn([kind(draw) for kind in kinds], count)


def take_in_turn(streams: Sequence[Iterator[T]], count: int) -> list[T]:
    """The first `count` items that differ when printed, one of each endless stream in turn."""
    found: dict[str, T] = {}
    turn = 0
    while len(found) < count:
        item = next(streams[turn % len(streams)])
        found.setdefault(str(item), item)
        turn += 1
    return list(found.values())


def misspelt(word: str, draw: random.Random) -> str:
    while True:
        at = draw.randrange(1, max(2, len(word) - 1)) if len(word) > 1 else 0
        other = draw.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
                word.upper(),
                word[:at] + draw.choice("éxz-") + word[at + 1 :],
            ]
        )
        if other not in ("", word) and not other.startswith("-"):
            return other


def fitting(key: str) -> str:
    """A value that the key takes beside the toy's others."""
    return "1" if key.startswith("model.num") else example(key)


def _base(key: str) -> list[str]:
    if key == "rl.bucket_mb":
        return SERVER
    if key in OF_RAY:
        return RAY
    return POLICY if key.startswith("rl.") else BASE


def _leaf(draw: random.Random, beside: str = "") -> str:
    """A key, with a base of the same kind as `beside` has."""
    keys = [key for key in KEYS if not coerce.is_mapping(KEYS[key])]
    return draw.choice([key for key in keys if not beside or _base(key) == _base(beside)])


def _misspelt_keys(draw: random.Random) -> Iterator[Case]:
    while True:
        key = _leaf(draw)
        if key.startswith(USELESS):
            continue
        section, _, name = key.partition(".")
        other = misspelt(name, draw)
        typed = draw.choice([f"{section}.{other}", f"{section}.{other}", other, f"{misspelt(section, draw)}.{name}"])
        if typed not in KEYS and typed not in GROUPS and typed not in ("run", "train"):
            yield Case("misspelt key", _base(key), [f"{typed}={fitting(key)}"])


def _kind(hint: Any) -> Any:
    base = coerce.base(hint)
    return get_origin(base) or base


def _wrong_values(draw: random.Random) -> Iterator[Case]:
    while True:
        key = draw.choice([*KEYS])
        kind = _kind(KEYS[key])
        if key == "lora.target":
            continue  # its values need published weights
        if kind is Literal:
            choices = get_args(coerce.base(KEYS[key]))
            value = draw.choice([misspelt(draw.choice(choices), draw), "null", "", "[a]", "7"])
            if value in choices:
                continue
        elif kind in WRONG:
            value = draw.choice(WRONG[kind])
        else:
            key, value = "run.name", draw.choice(["日本", "a b", "", "a/b", "-a", "[a]", "{a: b}", "${", "a\nb"])
        yield Case("wrong value", _base(key), [f"{key}={value}"])


def _out_of_range(draw: random.Random) -> Iterator[Case]:
    while True:
        key = draw.choice(sorted(POSITIVE | NOT_NEGATIVE))
        values = ["-1", "-1e30"] + (["0"] if key in POSITIVE else [])
        values += ["9223372036854775808", "1e20"] if _kind(KEYS[key]) is int else ["1e39", "1e-50"]
        value = draw.choice(values)
        fits = (key == "train.seed" and value == "9223372036854775808") or (key not in POSITIVE and value == "1e-50")
        two = key == "train.global_batch"  # also has to fit micro_batch
        if not fits and not two:
            yield Case("out of range", _base(key), [f"{key}={value}"])


def shapes(draw: random.Random) -> Iterator[Case]:
    """Lines whose words are not of the form key=value."""
    while True:
        key = _leaf(draw)
        other = _leaf(draw, key)
        value, more = fitting(key), fitting(other)
        if key == other:
            continue
        forms = [
            [f"{key} = {value}"],
            [key, "=", value],
            [f"{key}=", value],
            [key, f"={value}"],
            [key, value],
            [f"{key}=={value}"],
            [f"{key}={value} {other}={more}"],
            [f"{key}={value},{other}={more}"],
            [f"{key}={value};{other}={more}"],
            [key],
            [f"{key}:{value}"],
            [f"--{key}={value}"],
            [f"+{key}={value}"],
            [f"++{key}={value}"],
            [f"~{key}"],
            [f"{key}@x={value}"],
            [f"{key}={value}", f"{key}={value}"],
            [f"{key}=${{{key}}}"],
            [f"{key}=${{{key}x}}"],
            [f"{key}=${{now:%Y}}"],
            [f"{key}=${{"],
            [f"={value}"],
            [""],
            [f" {key}={value}"],
            [f"{key}.x={value}"],
            [key.partition(".")[0] + f"={value}"],
        ]
        bad = draw.choice(forms)
        if key.startswith(USELESS) or other.startswith(USELESS):
            continue
        if len(bad) == 2 and bad[0] == f"{key}=" and coerce.is_text(KEYS[key]):
            continue  # an empty text is a text
        name, _, typed = bad[0].partition("=")
        if typed in GROUPS.get(name, ()):
            continue  # an option of the group, as precision=fp32
        yield Case("shape", _base(key), bad)


def _groups(draw: random.Random) -> Iterator[Case]:
    while True:
        group = draw.choice([*GROUPS])
        option = draw.choice([option for option in GROUPS[group] if option in FITTING.get(group, GROUPS[group])])
        base = [word for word in BASE if not word.startswith(f"{group}=")]
        wrong = misspelt(option, draw)
        bad = draw.choice(
            [
                [f"{group}={wrong}"],
                [f"{misspelt(group, draw)}={option}"],
                [f"{group}={option},{option}"],
                [f"{group}=null"],
                [f"{group}=[{option}]"],
                [f"{group}="],
                [f"{group}:{option}"],
                [f"{group} = {option}"],
                [group, option],
                [f"{group}={option}", f"{group}={option}"],
                [f"+{group}={option}"],
                [f"~{group}"],
                [f"{group}@x={option}"],
            ]
        )
        name = bad[0].partition("=")[0]
        if wrong not in GROUPS[group] and (name in (group, *GROUPS) or not name.startswith(("run", "train"))):
            yield Case("group", base, bad)


class _Made(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


class _Stopping(Parser):
    def read(self, words: Any) -> NoReturn:
        raise _Made(self)


def parser_of(command: str) -> Parser:
    try:
        importlib.import_module(module_of(command)).prepare(_Stopping(f"octavo {command}", ""), [])
    except _Made as made:
        return made.parser
    raise AssertionError(f"{command} reads no words")


def _fitting(option: Any) -> str:
    """A value that the option takes."""
    try:
        (option.type or str)("1")
    except BadValue as error:
        return error.allowed[0] if isinstance(error.allowed, tuple) else "0.5"
    return "1"


def _options(draw: random.Random) -> Iterator[Case]:
    while True:
        command = draw.choice([*COMMANDS])
        options = [
            action
            for action in parser_of(command).added
            if action.option_strings and action.nargs is None and action.dest != "config_dir"
        ]
        base = [command, *NEEDED.get(command, [])]
        names = [action.option_strings[-1] for action in options]
        if not names:
            continue
        name = draw.choice(names)
        value = _fitting(options[names.index(name)])
        used = any(word.startswith(name) for word in base)
        wrong = misspelt(name[2:], draw)
        if f"--{wrong}" in names or used or wrong.lower() == name[2:]:
            continue
        shapes = [[f"--{wrong}={value}"], [f"--{wrong}", value], [name], [name, value, name, value]]
        yield Case("option", base, draw.choice(shapes))


def _commands(draw: random.Random) -> Iterator[Case]:
    while True:
        name = misspelt(draw.choice([*COMMANDS]), draw)
        if name not in COMMANDS:
            yield Case("command", [], [name, "recipe=toy"])


def _recipes(draw: random.Random) -> Iterator[Case]:
    """A recipe with one mistake; those without a defaults list of their own may stand on the toy."""
    while True:
        text = draw.choice([*RECIPES, *HEADS])
        body = text if isinstance(text, bytes) else text.replace("{name}", "bad").encode()
        base = b"defaults: [toy]\n" if draw.random() < 0.7 and body[:1].isalpha() and b"efault" not in body else b""
        whole = body if text in HEADS else HEAD.encode() + base + body
        files = {"recipe/bad.yaml": whole, "recipe/other.yaml": f"{HEAD}defaults: [bad]\n".encode()}
        label = whole.decode(errors="replace")[:60]
        yield Case("recipe", ["config", "--config-dir", "mine", "data=synthetic", "recipe=bad"], [], files, label)
