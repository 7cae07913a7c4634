"""The toy corpora as a mixture: their prefixes, and building them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.parallel.zero.fresh_groups import forget_groups
from tests.trainer.tiny_run import events, steps
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.corpora.tokenize import write
from trainer.corpora.toy import open_toy_mixture
from trainer.data.build import build_data, source_directories
from trainer.data.errors import DataError
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.data.shards.windows import Shards
from trainer.run.process import train
from trainer.storage.progress import Progress, ignore

SMALL = ["data.tokens_per_source=80000", "data.holdout_fraction=0.5"]
SMALL += [f"data.sources.{name}.unique_tokens=20000" for name in ("pubchem", "thermo", "code", "prose")]


@pytest.fixture(scope="module")
def words(cache_dir: Path) -> list[str]:
    """Overrides under which the toy mixture is a small one, which is built."""
    words = [*SMALL, f"data.cache_dir={cache_dir}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "HAS_WHEEL", False)  # the same bytes without Megatron's import of 5 s
        open_toy_mixture(compose(["recipe=toy", *words]).data, progress=ignore)
    return words


@pytest.fixture(scope="module")
def toy(words: list[str]) -> Config:
    return compose(["recipe=toy", *words])


def test_all_science_documents_have_a_science_prefix_and_no_general_one_does(toy: Config) -> None:
    tokenizer = build_data(toy.data, seed=0, vocab_size=4096).text.tokenizer
    ids = {group: [tokenizer.encode(text) for text in texts] for group, texts in toy.data.prefixes.items()}
    counted = {"science": 0, "general": 0}
    for name, directory in source_directories(toy.data).items():
        domain, begins_with = toy.data.sources[name].domain, {"science": 0, "general": 0}
        documents = 0
        for split in ("train", "heldout"):
            manifest = Shards(directory, split).manifest
            for shard in manifest["shards" if split == "train" else "heldout"]:
                tokens = IndexedTokens(directory / shard["stem"])
                documents += tokens.num_documents
                for number in range(tokens.num_documents):
                    found = tokens.document(number).tolist()
                    for group, prefixes in ids.items():
                        begins_with[group] += any(found[: len(prefix)] == prefix for prefix in prefixes)
        counted[domain] += documents
        assert begins_with == {"science": 0, "general": 0, domain: documents}
    assert min(counted.values()) > 20


def test_corpora_are_built_once_and_again_where_they_are_damaged(toy: Config, monkeypatch) -> None:
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    data = replace(toy.data, sources={"code": toy.data.sources["code"]})
    said: list[Progress] = []
    (directory,) = open_toy_mixture(data, said.append).values()
    before = Shards(directory).fingerprint
    assert len(said) > 2
    said.clear()
    assert open_toy_mixture(data, said.append) == {"code": directory}
    assert said == []
    path = directory / "train-00000.bin"
    tokens = np.fromfile(path, "<u2")
    tokens[7] ^= 1
    tokens.tofile(path)
    open_toy_mixture(data, said.append)
    assert "train-00000.bin is corrupt" in said[0].detail
    assert Shards(directory).fingerprint == before


@pytest.mark.slow  # quick: test_build's locks, and the rebuilt corpus above
def test_two_processes_at_once_make_the_same_bytes_as_one_before(words: list[str], toy: Config, tmp_path: Path) -> None:
    script = (
        "import sys; from trainer.config.compose import compose; from trainer.corpora.tokenize import write\n"
        "from trainer.corpora.toy import open_toy_mixture\n"
        "write.HAS_WHEEL = False\n"
        "print(open_toy_mixture(compose(['recipe=toy', *sys.argv[1:]]).data)['code'].parent)"
    )
    others = [word for word in words if not word.startswith("data.cache_dir=")]
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", script, *others, f"data.cache_dir={tmp_path}"],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in (1, 2)
    ]
    printed = [Path(builder.communicate(timeout=120)[0].strip()) for builder in builders]
    (built,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert printed == [built] * 2
    before = open_toy_mixture(toy.data)["code"].parent
    assert built.name == before.name
    files = [path.relative_to(before) for path in before.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {name: (built / name).read_bytes() for name in files} == {
        name: (before / name).read_bytes() for name in files
    }


def test_text_survives_the_tokenizer(toy: Config) -> None:
    tokenizer = build_data(toy.data, seed=0, vocab_size=4096).text.tokenizer
    for text in ("def f(x):\n\treturn x  # ünïcödé 水 🧪\n", " C1=CC=CC=C1 ", "", "<|endofdocument|>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.eos_id]) == "ab"


def test_what_cannot_be_made_is_named(words: list[str]) -> None:
    data = compose(["recipe=toy", *words, "data.sources.code.path=cod"]).data
    with pytest.raises(DataError) as caught:
        open_toy_mixture(data)
    assert (caught.value.where, caught.value.value) == ("data.sources.code.path", "cod")
    assert {"code", "pubchem", "thermo"} <= set(caught.value.allowed)


def rehearse(recipe: str, words: list[str], ranks: int) -> int:
    try:
        return train(compose([f"recipe={recipe}_rehearsal", *words], world_size=ranks))
    finally:
        forget_groups()


@pytest.mark.slow  # eight processes on two cores; the use: what a large recipe wires together does train
@pytest.mark.parametrize(("recipe", "ranks"), [("cpt_6t", 8), ("cpt_30b_8gpu", 8), ("cpt_30b_1gpu_offload", 1)])
def test_large_recipes_train_at_toy_size(recipe: str, ranks: int, words: list[str], tmp_path: Path) -> None:
    if "offload" in recipe:
        pytest.importorskip("deepspeed")
    few = ["train.steps=2", "train.log_every=1", "train.eval_batches=1", "logging.console=off", f"run.dir={tmp_path}"]
    assert on_ranks(ranks, rehearse, recipe, [*words, *few], ranks, timeout_s=120) == [0] * ranks
    assert [record["tokens"] > 1000 for record in steps(tmp_path)] == [True, True]
    assert set(events(tmp_path, "evaluation")[-1]["heldout"]) == {"pubchem", "thermo", "code", "prose"}
