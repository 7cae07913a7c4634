"""What a recipe may say about a mixture: typed keys, and every contradiction at once."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from trainer.config import coerce as schema
from trainer.config.compose import compose, load, to_yaml
from trainer.config.keys import Config, ConfigError, DataConfig, PhaseConfig, SourceConfig, config_hash
from trainer.data.mixture.spec import beyond_epochs, contradictions, drawn, whole
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


def errors(place, *words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        composed(place, *words)
    return caught.value.errors


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


WRONG_WORDS = [
    ("data.sources.code.tokns=3", "data.sources.code.tokns: no such key", "'data.sources.code.tokens'"),
    ("data.sources.code={tokns: 3}", "data.sources.code.tokns: no such key", "'data.sources.code.tokens'"),
    ("data.sources.cod.max_epochs=3", "data.sources.cod: no such key", "'code'"),
    ("data.sources.code.zzz=3", "data.sources.code.zzz: no such key", "data.sources.code has path, domain"),
    ("data.sources.code.max_epochs=often", "data.sources.code.max_epochs=often has the wrong type", "a number"),
    ("data.sources.code.domain=[a]", "data.sources.code.domain=['a']", "science or general"),
    ("data.sources.code.domain=sciense", "data.sources.code.domain=sciense does not exist", "'science'"),
    ("data.sources.code.phases=3", "data.sources.code.phases=3", "a mapping"),
    ("data.sources.code=3", "data.sources.code=3", "path, domain"),
    ("data.sources=3", "data.sources=3", "a mapping"),
    ("data.sourcs.code.tokens=3", "data.sourcs.code.tokens: no such key", "data."),
    ("data.phases.stable.token=3", "data.phases.stable.token: no such key", "'data.phases.stable.tokens'"),
    ("data.prefixes.plain=Text", "data.prefixes.plain=Text", "a list"),
]


@pytest.mark.parametrize(("word", "names", "offers"), WRONG_WORDS, ids=[word for word, *_ in WRONG_WORDS])
def test_a_mistake_in_an_entry_is_named_by_its_dotted_key(place, word, names, offers):
    line = errors(place, word)[0]
    assert names in line
    assert offers in line


def test_all_mistakes_of_a_file_are_reported(tmp_path):
    text = RECIPE.replace("path: code", "paht: code").replace("tokens: 600_000", "tokens: many")
    text = text.replace("anneal: {tokens: 100_000}", "anneal: 5")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini.yaml").write_text(text)
    lines = errors(tmp_path)
    wanted = [
        "data.sources.chem.tokens=many",
        "data.sources.code.paht: no such key; did you mean 'data.sources.code.path'?",
        "data.sources.code.path is not set",
        "data.phases.anneal=5",
    ]
    assert [sum(line.startswith(start) for line in lines) for start in wanted] == [1] * 4, lines


def test_differences_and_refusals_name_the_entrys_key(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed(place, "run.dir=here")
    rundir.prepare(rundir.choose(cfg), cfg)
    (tmp_path / "here/metrics.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"data\.sources\.code\.max_epochs: 1\.0 -> 2\.0"):
        rundir.choose(composed(place, "run.dir=here", "data.sources.code.max_epochs=2"))
    assert rundir.choose(composed(place, "run.dir=here", "data.root=elsewhere", "data.reader=megatron")).status


def test_the_order_of_phases_defines_the_run(place, data):
    """It decides which samples come first; a hash of sorted keys alone would not know it."""
    cfg = composed(place)
    turned = replace(cfg, data=replace(data, phases=dict(reversed(data.phases.items()))))
    assert turned == cfg  # as mappings compare
    assert config_hash(turned) != config_hash(cfg)


def test_a_run_directory_from_before_there_were_mixtures_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose(["recipe=toy", "data=synthetic", "run.dir=here"])
    stored = schema.to_dict(cfg)
    for key in ("sources", "phases", "prefixes", "build", "root", "reader", "verify", "on_fault", "max_skips"):
        del stored["data"][key]
    (tmp_path / "here/checkpoints").mkdir(parents=True)
    (tmp_path / "here/config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    assert rundir.choose(cfg).status == "resume"
    with pytest.raises(ConfigError, match=r"data\.phases: \(not there\) -> \['stable', 'anneal'\]"):
        rundir.choose(compose(["recipe=toy", "data=toy_mixture", "run.dir=here"]))


def test_every_key_of_an_entry_defines_the_run(place):
    hashes = {config_hash(composed(place, *words)) for words in ([], ["data.sources.code.path=x"])}
    assert len(hashes) == 2
    assert config_hash(composed(place, "data.root=x", "data.verify=off")) in hashes


# -- what does not add up --------------------------------------------------------------------------------------------


def test_the_small_mixture_adds_up(data):
    assert contradictions(data) == []
    assert drawn(data) == {"chem": 600_000, "code": 400_000}


CONTRADICTIONS = [
    ({"code__tokens": 400_001}, "data.sources have 1000001 tokens in all and data.phases 1e6: 1 too many"),
    ({"anneal__tokens": 100_001}, "data.sources have 1e6 tokens in all and data.phases 1000001: 1 missing"),
    ({"chem__max_epochs": 1.5}, "data.sources.chem.tokens=600000 is 2 times its unique_tokens=300000, and its"),
    ({"chem__unique_tokens": 0}, "data.sources.chem.unique_tokens=0 must be positive"),
    ({"chem__unique_tokens": 256, "chem__max_epochs": 1e6}, "data.sources.chem.unique_tokens=256 has no window"),
    ({"chem__tokens": 10**6 - 200, "chem__max_epochs": 4.0, "code__tokens": 200}, "data.sources.code.tokens=200 is"),
    ({"chem__phases": {"stable": 5.0}}, "data.phases.anneal: no source has a weight in it"),
    ({"chem__phases": {"stable": 5.0, "aneal": 1.0}}, "data.sources.chem.phases.aneal: data.phases has no such phase"),
    ({"chem__phases": {"stable": -1.0, "anneal": 1.0}}, "data.sources.chem.phases.stable=-1 is no weight"),
    ({"code__phases": {}}, "data.sources.code.phases gives it no weight in any phase"),
    ({"code__phases": {"stable": 350.0}}, "data.sources.code.phases={stable: 350} gives it 370588 of the phases'"),
    ({"code__modality": "image"}, "data.sources.code.modality=image needs a tower"),
    ({"code__modality": "time_series"}, "data.sources.code.modality=time_series needs a tower"),
    ({"code__path": "chem"}, "data.sources.code.path=chem is also that of data.sources.chem"),
    ({"code__path": " "}, "data.sources.code.path is empty"),
    ({"code__prefix": "plan"}, "data.sources.code.prefix=plan: data.prefixes has science or plain; did you mean"),
    ({"code__prefix": "science"}, "data.prefixes.science is used by data.sources.chem (science) and data.sources.code"),
    ({"chem__prefix": ""}, "data.sources.chem.prefix is empty"),
    ({"prefixes": {"science": ["A:"], "plain": []}}, "data.prefixes.plain is empty"),
    ({"prefixes": {"science": ["A:"], "plain": [""]}}, "data.prefixes.plain[0] is empty"),
    ({"prefixes": {"science": ["A:", "A:"], "plain": ["B"]}}, "data.prefixes.science[1] is the same text as"),
    ({"prefixes": {"science": ["A:"], "plain": ["A:"]}}, "data.prefixes.plain[0] is the same text as"),
    ({"prefixes": {"science": ["A: b"], "plain": ["A:"]}}, "data.prefixes.science[0] begins with data.prefixes.plain"),
    ({"phases": {}}, "data.phases is empty"),
    ({"stable__tokens": 0}, "data.phases.stable.tokens=0 must be positive"),
    ({"stable__tokens": 999_900, "anneal__tokens": 100}, "data.phases.anneal.tokens=100 is less than a sample"),
    ({"name": "synthetic"}, "data.sources is for data.name=mixture, and this is data.name=synthetic"),
    ({"name": "synthetic", "sources": {}, "phases": {}, "prefixes": {}, "build": "toy"}, "data.build=toy is for"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "starts"), CONTRADICTIONS, ids=[str(changes)[:50] for changes, _ in CONTRADICTIONS]
)
def test_a_contradiction_is_named_by_its_key(data, changes, starts):
    lines = contradictions(change(data, **changes))
    assert sum(line.startswith(starts) for line in lines) == 1, lines
    assert not any("\n" in line for line in lines)


def test_every_contradiction_is_reported_at_once(data):
    """One of each kind, none hidden by another."""
    wrong = change(
        data,
        chem__max_epochs=1.5, chem__prefix="", code__tokens=500_000, code__modality="image", code__path="chem",
        code__prefix="plan", anneal__tokens=100, prefixes={"science": ["A:"], "plain": ["A:"]},
    )  # fmt: skip
    starts = [
        "data.sources.code.path=chem is also", "data.sources.code.modality=image", "data.sources.chem.prefix is empty",
        "data.sources.code.prefix=plan", "data.prefixes.plain[0] is the same",
        "data.sources have 1.1e6 tokens in all and data.phases 900100: 199900 too many",
        "data.sources.chem.tokens=600000 is 2 times", "data.sources.code.tokens=500000 is 1.25 times",
        "data.phases.anneal.tokens=100 is less", "data.sources.chem.phases=", "data.sources.code.phases=",
    ]  # fmt: skip
    lines = contradictions(wrong)
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)
    assert len(lines) == len(starts)


def test_what_a_line_offers_works(data):
    (line,) = contradictions(change(data, chem__max_epochs=1.5))
    offered = re.search(r"or max_epochs=([\d.]+)$", line)
    assert offered
    assert contradictions(change(data, chem__max_epochs=float(offered[1]))) == []


def test_weights_may_be_rounded_but_not_wrong(data):
    thirds = change(data, chem__phases={"stable": 0.5556, "anneal": 1.0}, code__phases={"stable": 0.4444})
    assert contradictions(thirds) == []
    assert drawn(thirds)["chem"] != 600_000


def test_one_wrong_sum_is_not_told_of_every_source(data):
    double = change(data, stable__tokens=1_800_000, anneal__tokens=200_000)
    assert [line.split(":")[0] for line in contradictions(double)] == [
        "data.sources have 1e6 tokens in all and data.phases 2e6"
    ]


def test_without_prefixes_nothing_is_isolated(data):
    assert contradictions(change(data, prefixes={}, chem__prefix="", code__prefix="")) == []


def test_a_run_longer_than_the_phases_goes_on_in_the_last_until_a_source_is_used_up(place, data):
    sample = 8 * 256
    assert beyond_epochs(data, 1_000_000 // sample, 8) == []
    (line,) = beyond_epochs(data, 1000, 8)
    assert line.startswith("train.steps=1000 takes 2.048e6 tokens and data.phases have 1e6: data.sources.chem would be")
    assert "use train.steps=488 or less" in line
    assert beyond_epochs(data, 488, 8) == []
    more = change(data, chem__max_epochs=5.5)
    assert beyond_epochs(more, 1000, 8) == []
    assert any(line.startswith("train.steps=1000 takes") for line in errors(place, "train.steps=1000"))
    assert beyond_epochs(SimpleNamespace(name="toy"), 10**9, 8) == []


def test_weights_are_exact_to_their_last_digit():
    assert whole([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert whole([0.045, 0.4]) == [9, 80]
    assert whole([2400.0, 0.0, 1e-3]) == [2_400_000, 0, 1]
    assert whole([1 / 3, 2 / 3]) == [1, 2]
    assert whole([0.0, 0.0]) == [0, 0]
