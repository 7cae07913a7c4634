"""The keys of a mixture in a recipe, and every contradiction between them at once."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from parallel.errors import Fault
from trainer.config import coerce
from trainer.config.checks.data import check_length, check_mixture, check_towers
from trainer.config.compose import compose, load, to_yaml
from trainer.config.errors import ConfigError
from trainer.config.keys import Config, DataConfig, config_hash
from trainer.config.mixture import PhaseConfig, SourceConfig, drawn, integer_weights
from trainer.run import directory as rundir

RECIPE = """
name: mixture
sources:
  chem: {path: chem, domain: science, tokens: 600_000, unique_tokens: 300_000, max_epochs: 2, prefix: science,
         phases: {stable: 500, anneal: 100}}
  code: {path: code, domain: general, tokens: 4e5, unique_tokens: 400_000, prefix: plain, phases: {stable: 400}}
phases: {stable: {tokens: 900_000}, anneal: {tokens: 100_000}}
prefixes: {science: ["A record:", "Science:"], plain: ["Text:"]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipes")
    (directory / "data").mkdir()
    (directory / "data/mini.yaml").write_text(RECIPE)
    return directory


@pytest.fixture(scope="module")
def data(place) -> DataConfig:
    return composed(place).data


def composed(place, *words: str) -> Config:
    return compose(["recipe=toy", "data=mini", *words], config_dirs=[place])


def faults(place, *words: str) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        composed(place, *words)
    return caught.value.faults


def change(data: DataConfig, **changes) -> DataConfig:
    """`code__tokens=1` sets tokens of a source, `anneal__tokens=1` of a phase, others keys of data."""
    for key, value in changes.items():
        name, _, inner = key.partition("__")
        section = "sources" if name in data.sources else "phases"
        if inner:
            entries = getattr(data, section)
            data = replace(data, **{section: {**entries, name: replace(entries[name], **{inner: value})}})
        else:
            data = replace(data, **{key: value})
    return data


# -- the keys of entries ---------------------------------------------------------------------------------------------


def test_entries_are_typed_filled_with_defaults_and_read_back(place, tmp_path):
    cfg = composed(place)
    code = cfg.data.sources["code"]
    assert isinstance(code, SourceConfig)
    assert (code.tokens, type(code.tokens), code.modality, code.max_epochs) == (400_000, int, "text", 1.0)
    assert cfg.data.phases == {"stable": PhaseConfig(tokens=900_000), "anneal": PhaseConfig(tokens=100_000)}
    (tmp_path / "c.yaml").write_text(to_yaml(cfg))
    assert load(tmp_path / "c.yaml") == cfg


def test_entries_are_overridden_by_dotted_keys_and_by_mappings(place):
    cfg = composed(place, "data.sources.chem.max_epochs=3", "data.sources.code={max_epochs: 2, path: elsewhere}")
    assert (cfg.data.sources["chem"].max_epochs, cfg.data.sources["chem"].path) == (3.0, "chem")
    assert (cfg.data.sources["code"].max_epochs, cfg.data.sources["code"].path) == (2.0, "elsewhere")
    weights = composed(place, "data.sources.chem.phases.stable=5e2", "data.sources={chem: {phases: {anneal: 7}}}")
    assert weights.data.sources["chem"].phases == {"stable": 500.0, "anneal": 7.0}


ENTRY = ("path", "domain", "modality", "tokens", "unique_tokens", "max_epochs", "prefix", "phases")
SECTIONS = ("checkpoint.", "data.", "logging.", "model.", "optim.", "parallel.", "precision.", "run.", "train.")
# a word, the fault's key, its value, what it offers
WRONG_WORDS = [
    ("data.sources.code.tokns=3", "data.sources.code.tokns", None, ("data.sources.code.tokens",)),
    ("data.sources.code={tokns: 3}", "data.sources.code.tokns", None, ("data.sources.code.tokens",)),
    ("data.sources.cod.max_epochs=3", "data.sources.cod", None, ("chem", "code")),
    ("data.sources.code.zzz=3", "data.sources.code.zzz", None, tuple(f"data.sources.code.{name}" for name in ENTRY)),
    ("data.sources.code.max_epochs=often", "data.sources.code.max_epochs", "often", "a number"),
    ("data.sources.code.domain=[a]", "data.sources.code.domain", "[a]", "science or general"),
    ("data.sources.code.domain=sciense", "data.sources.code.domain", "sciense", ("science", "general")),
    ("data.sources.code.phases=3", "data.sources.code.phases", 3, "a mapping"),
    ("data.sources.code=3", "data.sources.code", 3, f"a mapping with the keys {', '.join(ENTRY)}"),
    ("data.sources=3", "data.sources", 3, "a mapping"),
    ("data.sourcs.code.tokens=3", "data.sourcs.code.tokens", None, ("data.sources.code.tokens",)),
    ("data.phases.stable.token=3", "data.phases.stable.token", None, ("data.phases.stable.tokens",)),
    ("data.prefixes.plain=Text", "data.prefixes.plain", "Text", "a list such as [a, b]"),
]


@pytest.mark.parametrize(("word", "where", "value", "allowed"), WRONG_WORDS, ids=[word for word, *_ in WRONG_WORDS])
def test_a_mistake_in_an_entry_is_named_by_its_dotted_key(place, word, where, value, allowed):
    fault = faults(place, word)[0]
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)
    assert where in fault.text


def test_all_mistakes_of_a_file_are_reported(tmp_path):
    text = RECIPE.replace("path: code", "paht: code").replace("tokens: 600_000", "tokens: many")
    text = text.replace("anneal: {tokens: 100_000}", "anneal: 5")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.yaml").write_text(text)
    found = [(fault.where, fault.value, fault.allowed) for fault in faults(tmp_path)]
    for wanted in (
        ("data.sources.chem.tokens", "many", "a whole number"),
        ("data.sources.code.paht", None, ("data.sources.code.path",)),
        ("data.phases.anneal", 5, ("data.phases.anneal.tokens",)),
    ):
        assert found.count(wanted) == 1
    assert "data.sources.code.path" not in [where for where, *_ in found]  # misspelt, and so not missing as well


def test_differences_and_refusals_name_the_entrys_key(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed(place, "run.dir=here")
    rundir.prepare(rundir.choose(cfg), cfg)
    (tmp_path / "here/metrics.jsonl").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        rundir.choose(composed(place, "run.dir=here", "data.sources.code.max_epochs=2"))
    assert any("data.sources.code.max_epochs: 1.0 -> 2.0" in change for change in refused.value.allowed)
    assert rundir.choose(composed(place, "run.dir=here", "data.root=elsewhere", "data.reader=megatron")).status


def test_the_order_of_phases_defines_the_run(place, data):
    """It decides which samples come first; a hash of sorted keys alone would not know it."""
    cfg = composed(place)
    turned = replace(cfg, data=replace(data, phases=dict(reversed(data.phases.items()))))
    assert turned == cfg  # as mappings compare
    assert config_hash(turned) != config_hash(cfg)


def test_a_run_directory_from_before_there_were_mixtures_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose(["recipe=toy", "data=synthetic", "run.dir=here"])
    stored = coerce.to_dict(cfg)
    for key in ("sources", "phases", "prefixes", "build", "root", "reader", "verify", "on_fault", "max_skips"):
        del stored["data"][key]
    (tmp_path / "here/checkpoints").mkdir(parents=True)
    (tmp_path / "here/config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    assert rundir.choose(cfg).status == "resume"
    with pytest.raises(ConfigError) as refused:
        rundir.choose(compose(["recipe=toy", "data=toy_mixture", "run.dir=here"]))
    assert any("data.phases: {} -> ['stable', 'anneal']" in change for change in refused.value.allowed)


def test_every_key_of_an_entry_defines_the_run(place):
    hashes = {config_hash(composed(place, *words)) for words in ([], ["data.sources.code.path=x"])}
    assert len(hashes) == 2
    assert config_hash(composed(place, "data.root=x", "data.verify=off")) in hashes


# -- what does not add up --------------------------------------------------------------------------------------------


def test_the_small_mixture_adds_up(data):
    assert check_mixture(data) == []
    assert drawn(data.sources, data.phases) == {"chem": 600_000, "code": 400_000}


# changed keys, the fault's key, its value, what it offers
CONTRADICTIONS = [
    ({"code__tokens": 400001}, "data.sources", 1000001, "1e6 tokens in total"),
    ({"anneal__tokens": 100001}, "data.sources", 1000000, "1000001 tokens in total"),
    ({"chem__max_epochs": 1.5}, "data.sources.chem.tokens", 600000, "450000 or less"),
    ({"chem__unique_tokens": 0}, "data.sources.chem.unique_tokens", 0, "1 or more"),
    (
        {"chem__unique_tokens": 256, "chem__max_epochs": 1000000.0},
        "data.sources.chem.unique_tokens",
        256,
        "257 or more",
    ),
    (
        {"chem__tokens": 999800, "chem__max_epochs": 4.0, "code__tokens": 200},
        "data.sources.code.tokens",
        200,
        "256 (data.seq_len) or more",
    ),
    ({"chem__phases": {"stable": 5.0}}, "data.phases.anneal", None, "data.sources.X.phases.anneal above 0"),
    ({"chem__phases": {"stable": 5.0, "aneal": 1.0}}, "data.sources.chem.phases.aneal", "aneal", ("stable", "anneal")),
    ({"chem__phases": {"stable": -1.0, "anneal": 1.0}}, "data.sources.chem.phases.stable", -1.0, "0 or more"),
    ({"code__phases": {}}, "data.sources.code.phases", {}, "a weight above 0 in one phase or more"),
    ({"code__phases": {"stable": 350.0}}, "data.sources.code.phases.stable", 350.0, (400.0,)),
    ({"code__path": "chem"}, "data.sources.code.path", "chem", "a directory of its own"),
    ({"code__path": " "}, "data.sources.code.path", " ", "the directory of its shards"),
    ({"code__prefix": "plan"}, "data.sources.code.prefix", "plan", ("science", "plain")),
    ({"code__prefix": "science"}, "data.prefixes.science", ("chem", "code"), "sources of one domain"),
    ({"chem__prefix": ""}, "data.sources.chem.prefix", "", ("science", "plain")),
    ({"prefixes": {"science": ["A:"], "plain": []}}, "data.prefixes.plain", [], "one text or more"),
    ({"prefixes": {"science": ["A:"], "plain": [""]}}, "data.prefixes.plain[0]", "", "a text"),
    ({"prefixes": {"science": ["A:", "A:"], "plain": ["B"]}}, "data.prefixes.science[1]", "A:", "another text"),
    ({"prefixes": {"science": ["A:"], "plain": ["A:"]}}, "data.prefixes.plain[0]", "A:", "another text"),
    (
        {"prefixes": {"science": ["A: b"], "plain": ["A:"]}},
        "data.prefixes.science[0]",
        "A: b",
        "a text that does not start with data.prefixes.plain[0]",
    ),
    ({"phases": {}}, "data.phases", {}, "one or more"),
    ({"stable__tokens": 0}, "data.phases.stable.tokens", 0, "1 or more"),
    ({"stable__tokens": 999900, "anneal__tokens": 100}, "data.phases.anneal.tokens", 100, "256 (data.seq_len) or more"),
    ({"name": "synthetic"}, "data.sources", ("chem", "code"), ()),
    (
        {"name": "synthetic", "sources": {}, "phases": {}, "prefixes": {}, "build": "toy"},
        "data.build",
        "toy",
        ("none",),
    ),
]


@pytest.mark.parametrize(
    ("changes", "where", "value", "allowed"), CONTRADICTIONS, ids=[str(changes)[:50] for changes, *_ in CONTRADICTIONS]
)
def test_a_contradiction_is_named_by_its_key(data, changes, where, value, allowed):
    found = check_mixture(change(data, **changes))
    assert [(fault.value, fault.allowed) for fault in found if fault.where == where] == [(value, allowed)]
    assert not any("\n" in fault.text for fault in found)


@pytest.mark.parametrize(("modality", "tower"), [("image", "vision"), ("time_series", "signals")])
def test_images_and_signals_need_the_models_tower(data, modality, tower):
    changed = change(data, code__modality=modality)
    assert check_mixture(changed) == []
    model = compose(["recipe=toy", "model=toy_multimodal"]).model
    assert check_towers(changed, model) == []
    (fault,) = check_towers(changed, replace(model, **{tower: None}))
    assert (fault.where, fault.value, fault.allowed) == ("data.sources.code.modality", modality, ("text",))
    assert ("cpt_6t" in fault.text, "intern_s1_pro" in fault.text) == (True, True)
    (fault,) = check_towers(replace(changed, build="toy"), replace(model, **{tower: None}))
    assert ("cpt_6t" in fault.text, "intern_s1_pro" in fault.text) == (False, False)
    for word in re.findall(r"(?:model|data)=\w+", fault.text):
        assert compose(["recipe=toy_multimodal", word])


def test_sums_are_typed_as_in_the_recipe(data):
    for changes, sources, phases in (({"code__tokens": 400_001}, "1000001", "1e6"),
                                     ({"anneal__tokens": 100_001}, "1e6", "1000001")):  # fmt: skip
        text = check_mixture(change(data, **changes))[0].text
        assert re.findall(r"\b\d[\de]*\b", text)[:3] == [sources, phases, "1"]
    (fault,) = check_mixture(change(data, code__phases={"stable": 350.0}))
    assert all(datum in fault.text for datum in ("stable=350", "370588"))


def test_every_contradiction_is_reported_at_once(data):
    """One of each kind, none hidden by another."""
    wrong = change(
        data,
        chem__max_epochs=1.5, chem__prefix="", code__tokens=500_000, code__path="chem",
        code__prefix="plan", anneal__tokens=100, prefixes={"science": ["A:"], "plain": ["A:"]},
    )  # fmt: skip
    found = [fault.where for fault in check_mixture(wrong)]
    assert sorted(found) == [
        "data.phases.anneal.tokens", "data.prefixes.plain[0]", "data.sources", "data.sources.chem.prefix",
        "data.sources.chem.tokens", "data.sources.code.path", "data.sources.code.prefix", "data.sources.code.tokens",
    ]  # fmt: skip


def test_the_offer_of_a_fault_works(data):
    (fault,) = check_mixture(change(data, chem__max_epochs=1.5))
    offered = re.findall(r"\bmax_epochs=(\d+(?:\.\d+)?)", fault.text)[-1]  # the remedy comes last
    assert float(offered) > 1.5
    assert check_mixture(change(data, chem__max_epochs=float(offered))) == []


def test_weights_may_be_rounded_but_not_wrong(data):
    thirds = change(data, chem__phases={"stable": 0.5556, "anneal": 1.0}, code__phases={"stable": 0.4444})
    assert check_mixture(thirds) == []
    assert drawn(thirds.sources, thirds.phases)["chem"] != 600_000


def test_one_wrong_sum_is_not_reported_of_every_source(data):
    double = change(data, stable__tokens=1_800_000, anneal__tokens=200_000)
    (fault,) = check_mixture(double)
    assert (fault.where, fault.value, fault.allowed) == ("data.sources", 1_000_000, "2e6 tokens in total")


FOUR = {"a": 4e5, "b": 3e5, "c": 2e5, "d": 1e5}


@pytest.fixture
def four(data):
    """Four sources in two phases; the second has the last two alone."""
    weights = {"a": {"one": 40.0}, "b": {"one": 30.0}, "c": {"one": 10.0, "two": 2.0}, "d": {"two": 2.0}}
    sources = {
        name: replace(data.sources["code"], path=name, tokens=int(tokens), unique_tokens=500_000, max_epochs=2.0,
                      phases=weights[name])
        for name, tokens in FOUR.items()
    }  # fmt: skip
    phases = {"one": PhaseConfig(tokens=800_000), "two": PhaseConfig(tokens=200_000)}
    four = replace(data, sources=sources, phases=phases)
    assert check_mixture(four) == []
    return four


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"a__phases": {"one": 50.0}}, "data.sources.a.phases.one"),
        ({"c__phases": {"one": 10.0, "two": 0.5}}, "data.sources.d.phases.two"),  # or c
        ({"d__phases": {"one": 8.0, "two": 2.0}}, "data.sources.d.phases.one"),
        ({"b__tokens": 400_000}, "data.sources"),
        ({"one__tokens": 700_000}, "data.sources"),
    ],
    ids=str,
)
def test_one_wrong_number_is_one_fault_and_its_remedy_works(four, changes, where):
    """A weight changes the shares of all sources of its phase."""
    wrong = change(four, **changes)
    (fault,) = check_mixture(wrong)
    assert fault.where == where
    key, value = re.findall(r"use (?:(data\.\S+)=)?(\d[\de.]*)$", fault.text)[0]
    *_, section, name, inner = (key or fault.where.rpartition(".phases.")[0] + ".phases").split(".")
    number = float(value)
    if inner == "phases":
        phase = fault.where.rpartition(".")[2]
        mended = change(wrong, **{f"{name}__phases": {**wrong.sources[name].phases, phase: number}})
    else:
        mended = change(wrong, **{f"{name}__{inner}": int(number)})
    assert check_mixture(mended) == []
    assert section in ("sources", "phases")


def test_several_wrong_weights_are_one_fault_that_names_the_sources(four):
    (fault,) = check_mixture(change(four, a__phases={"one": 70.0}, c__phases={"one": 10.0, "two": 9.0}))
    assert (fault.where, set(fault.value)) == ("data.sources", set(FOUR))


def test_without_prefixes_nothing_is_isolated(data):
    assert check_mixture(change(data, prefixes={}, chem__prefix="", code__prefix="")) == []


def test_a_run_longer_than_the_phases_continues_in_the_last_until_a_source_is_used_up(place, data):
    sample = 8 * 256
    assert check_length(data, 1_000_000 // sample, 8) == []
    (fault,) = check_length(data, 1000, 8)
    assert (fault.where, fault.value, fault.allowed) == ("train.steps", 1000, "488 or less")
    assert all(datum in fault.text for datum in ("2.048e6", "1e6", "data.sources.chem"))
    assert check_length(data, 488, 8) == []
    more = change(data, chem__max_epochs=5.5)
    assert check_length(more, 1000, 8) == []
    assert "train.steps" in [fault.where for fault in faults(place, "train.steps=1000")]
    assert check_length(SimpleNamespace(name="toy"), 10**9, 8) == []


def test_weights_are_exact_to_their_last_digit():
    assert integer_weights([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert integer_weights([0.045, 0.4]) == [9, 80]
    assert integer_weights([2400.0, 0.0, 1e-3]) == [2_400_000, 0, 1]
    assert integer_weights([1 / 3, 2 / 3]) == [1, 2]
    assert integer_weights([0.0, 0.0]) == [0, 0]
