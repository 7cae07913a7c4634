"""The words of a command line: what each is read as, and that the remedy of a mistake works as it is typed."""

import shlex
from typing import get_args

import pytest

from trainer.config import coerce
from trainer.config.compose import compose, load, to_yaml
from trainer.config.recipes import synonyms
from trainer.config.recipes.groups import KEYS, list_groups
from trainer.config.recipes.words import read_words
from trainer.config.say import nearest

GROUPS = list_groups()


def read(*words):
    return read_words(["recipe=toy", *words], GROUPS)


def values(*words):
    found = read(*words)
    assert found.faults == []
    return dict(found.values)


# -- texts stay as typed ---------------------------------------------------------------------------------------------

TEXTS = ["2026_11_29", "1_2", "1e3", "0x10", "007", "0o17", "1:30", "true", "False", "null", "None",
         "2026-11-29", "nan", "-inf", ".5", "5.", "+1", "日本", "a b", "a b=c", "x,y", "~", "a: b", "#1", "é=ü", "50%",
         "1_000.5e-3", "--x"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_text_is_kept_as_typed(text, quote):
    assert values(f"data.root={quote}{text}{quote}") == {"data.root": text}


def test_null_is_no_text_where_a_key_may_be_empty_unless_it_is_quoted():
    assert values("run.dir=null", "checkpoint.init_from='null'") == {"run.dir": None, "checkpoint.init_from": "null"}


def test_texts_survive_the_file_that_ranks_read(tmp_path):
    cfg = compose(["recipe=toy"])
    lines = [*zip(*(TEXTS[start::5] for start in range(5)), strict=False), ("a", "b", "c", "d", "~")]
    for *texts, project in lines:
        cfg.logging.wandb_project = project
        directories = ["./~" if text == "~" else text for text in texts]  # a bare one is refused
        cfg.run.dir, cfg.checkpoint.init_from, cfg.data.root, cfg.data.cache_dir = directories
        (tmp_path / "c.yaml").write_text(to_yaml(cfg))
        assert load(tmp_path / "c.yaml") == cfg


def test_numbers_and_lists_follow_the_schema():
    assert values("train.steps=1e3", "optim.betas=[0.5,0.25]", "optim.lr='1e-3'", "train.compile=TRUE") == {
        "train.steps": 1000.0,
        "optim.betas": [0.5, 0.25],
        "optim.lr": 1e-3,
        "train.compile": True,
    }


# -- one mistake, one fault, a remedy that works ---------------------------------------------------------------------

# words, the fault's key, what to type instead
RETYPED = [
    ("'train.steps = 3'", "train.steps", "train.steps=3"),
    ("train.steps = 3", "train.steps", "train.steps=3"),
    ("train.steps =3", "train.steps", "train.steps=3"),
    ("train.steps= 3", "train.steps", "train.steps=3"),
    ("train.steps 3", "train.steps", "train.steps=3"),
    ("model toy_gpu", "model", "model=toy_gpu"),
    ("'model = toy_gpu'", "model", "model=toy_gpu"),
    ("train.steps==3", "train.steps", "train.steps=3"),
    ("'train.steps=3 optim.lr=1'", "train.steps", "train.steps=3 optim.lr=1"),
    ("train.steps=3,optim.lr=1", "train.steps", "train.steps=3 optim.lr=1"),
    ("'run.dir=a;optim.lr=1'", "run.dir", "run.dir=a optim.lr=1"),
    ("'optim=sgd  train.steps=3'", "optim", "optim=sgd train.steps=3"),
    ("' train.steps=3'", "train.steps", "train.steps=3"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "where", "remedy"), RETYPED, ids=[typed for typed, *_ in RETYPED])
def test_words_with_spaces_are_retyped(typed, where, remedy):
    (fault,) = read(*shlex.split(typed)).faults
    assert (fault.where, fault.allowed) == (where, remedy)
    assert fault.text.endswith(remedy)
    assert read(*shlex.split(remedy)).faults == []


# words, the fault's key, the only thing that it offers
SUGGESTED = [
    ("train.stéps=3", "train.stéps", "train.steps"),
    ("modle.vision.width=3", "modle.vision.width", "model.vision.width"),
    ("model.visoin.width=3", "model.visoin.width", "model.vision.width"),
    ("model.visoin.num_heads=3", "model.visoin.num_heads", "model.vision.num_heads"),  # model.num_heads is not
    ("modle.visoin.widht=3", "modle.visoin.widht", "model.vision.width"),
    ("optim.prats.vision.lr=3", "optim.prats.vision.lr", "optim.parts.vision.lr"),
    ("data.sources.code.phasse.stable=3", "data.sources.code.phasse.stable", "data.sources.code.phases.stable"),
    ("data.sorces.code.phases.stable=3", "data.sorces.code.phases.stable", "data.sources.code.phases.stable"),
    ("TRAIN.STEPS=3", "TRAIN.STEPS", "train.steps"),
    ("train.log-every=3", "train.log-every", "train.log_every"),
    ("optim.lr", "optim.lr", "optim.lr=0.001"),
    ("sgd", "sgd", "optim=sgd"),
    ("toy_gpu", "toy_gpu", "recipe=toy_gpu"),
    ("model:toy", "model:toy", "model=toy"),
    ("optim.lr:0.5", "optim.lr:0.5", "optim.lr=0.5"),
    ("model.toy_gpu", "model.toy_gpu", "model=toy_gpu"),
]


@pytest.mark.parametrize(("typed", "where", "offered"), SUGGESTED, ids=[typed for typed, *_ in SUGGESTED])
def test_a_key_or_an_option_is_suggested(typed, where, offered):
    (fault,) = read(typed).faults
    assert (fault.where, fault.allowed) == (where, (offered,))
    assert offered in fault.text
    retyped = offered if "=" in offered else f"{offered}=3"
    assert read_words([retyped, *(["recipe=toy"] if "recipe" not in offered else [])], GROUPS).faults == []


# words, the fault's key, its value, what it offers
REFUSED = [
    ("train.steps=3 train.steps=4", "train.steps", ("3", "4"), "one of them"),
    ("train.steps=3 train.steps=3", "train.steps", ("3", "3"), "one of them"),
    ("optim=sgd optim=sgd", "optim", ("sgd", "sgd"), "one of them"),
    ("data.sources.code.tokens=5 'data.sources.code={tokens: 6}'", "data.sources.code.tokens", None, "one of them"),
    ("'data.sources.code.phases={stable: 5}' data.sources.code.phases.stable=6", "data.sources.code.phases.stable",
     None, "one of them"),
    ("''", "override", "", "remove it"),
    ("=3", "=3", "=3", "key=value"),
    ("optim.lr=", "optim.lr", "", "a number"),
    ("'optim.lr=1;2'", "optim.lr", "1;2", "a number"),
    ("train.steps=３", "train.steps", "３", "a whole number"),
    ("optim.lr=0,5", "optim.lr", "0,5", "a number"),
    ("optim.betas=0.9,0.95", "optim.betas", "0.9,0.95", "write a list as optim.betas=[0.9,0.95]"),
    ("optim.betas=[0.9", "optim.betas", "[0.9", "a list such as [0.9, 0.95]"),
    ("data.prefixes.science=[a,1_0]", "data.prefixes.science", "[a,1_0]", "quotes around each text, as in '7'"),
    ("'data.sources.code={path: 1_0}'", "data.sources.code.path", 10, "quotes around each text, as in '7'"),
    ("run.dir=x${", "run.dir", "x${", "write it out, or refer to a key: ${a.b}"),
    ("run.dir=[a]", "run.dir", "[a]", "text; if the brackets belong to it, quote them: 'run.dir=\"[a]\"'"),
    ("'run.name={a: b}'", "run.name", "{a: b}", "letters, digits, '_', '-' and '.'"),
    (f"train.steps={'9' * 5000}", "train.steps", "9" * 5000, "a whole number"),
    ("model=toy,toy_gpu", "model", "toy,toy_gpu", tuple(GROUPS["model"])),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "where", "value", "allowed"), REFUSED, ids=[typed[:40] for typed, *_ in REFUSED])
def test_what_cannot_be_read_is_refused_once(typed, where, value, allowed):
    found = read(*shlex.split(typed)).faults
    assert [(fault.where, fault.value, fault.allowed) for fault in found] == [(where, value, allowed)]
    assert len(found[0].text) < 500


def test_the_quoted_forms_that_remedies_show_are_accepted():
    assert values('run.dir="[a]"', "optim.betas=[0.9,0.95]", "data.prefixes.science=['7','true']") == {
        "run.dir": "[a]",
        "optim.betas": [0.9, 0.95],
        "data.prefixes.science": ["7", "true"],
    }


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("PARALLEL.COMBINE=fixed_order", "parallel.combine"),
        ("COMBINE=fixed_order", "parallel.combine"),
        ("Parallel.Combine=fixed_order", "parallel.combine"),
        ("OPTIM.LRR=1e-3", "optim.lr"),
        ("LR=1e-3", "optim.lr"),
        ("DATA.SEQ_LENGTH=8", "data.seq_len"),
        ("MODEL=toy", "model"),
        ("RECIPPE=toy", "recipe"),
    ],
)
def test_a_key_in_upper_case_is_suggested_in_lower_case(word, near):
    (fault,) = read(word).faults
    assert (fault.where, fault.allowed) == (word.partition("=")[0], (near,))


def test_a_section_or_an_option_in_upper_case_is_known():
    (section,) = read("TRAIN=7").faults
    assert "train.steps" in section.allowed
    found = read("model=TOY")
    assert (found.options["model"], len(found.faults)) == ("toy", 1)


def test_a_misspelt_key_is_one_fault_whatever_its_value():
    for word, near in (("optim.lrr=-1", "optim.lr"), ("optim.lrr=fast", "optim.lr"), ("modle=toyy", "model")):
        (fault,) = read(word).faults
        assert fault.allowed == (near,)


# -- names of other programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known", [(key, name) for key in ("parallel.pp", "optim.nvme_dir") for name in ("", "parallel.")]
)
def test_the_names_of_other_programs_are_known(known):
    key, section = known
    name = {"parallel.pp": "pipeline_model_parallel_size", "optim.nvme_dir": "nvme_path"}[key]
    (fault,) = read(f"{section}{name}=2").faults
    assert (fault.where, fault.allowed) == (f"{section}{name}", (key,))


def test_every_name_of_another_program_means_something_that_exists():
    for word, meant in synonyms._MEANT.items():
        if "." in meant:
            assert meant in KEYS
            assert word not in KEYS
        else:
            owners = [key for key, hint in KEYS.items() if meant in get_args(coerce.base(hint))]
            assert owners, meant
            assert all(nearest(word, get_args(coerce.base(KEYS[key]))) == meant for key in owners)


@pytest.mark.parametrize("word", ["tp", "parallel.tp", "model.tensor_model_parallel_size", "tensor-parallel-size"])
def test_what_is_lacking_is_said(word):
    (fault,) = read(f"{word}=2").faults
    assert "tensor parallelism" in fault.text
    assert set(fault.allowed) <= set(KEYS)
