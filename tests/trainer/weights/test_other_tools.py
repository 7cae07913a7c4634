"""Directories that other tools wrote: the logits are transformers', or the directory is refused with the reason.

Every row is one variant of a Qwen3-MoE that transformers saved. Where transformers loads it whole, its logits are what
ours must be; where it refuses or draws weights at random, ours must be those of the model that was saved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.model.tiny import logits, randomise_norms, relative
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_read import from_huggingface
from trainer.weights.hf_survey import survey_directory
from trainer.weights.upcycle.dryrun import directory_or_description
from trainer.weights.upcycle.journal import identity

BOUND = 1e-5
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
READ = "read"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]])


def write_model(directory: Path, seed: int = 0, **options: Any) -> Path:
    """A tiny model whose keys are not at their defaults, so that an ignored one changes the logits."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=16, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, intermediate_size=96, norm_topk_prob=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, max_position_embeddings=64, rms_norm_eps=1e-3,
        initializer_range=0.2,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    randomise_norms(model)
    model.save_pretrained(directory, **options)
    return directory


@dataclass
class Variant:
    """A copy of the saved directory, to be changed."""

    path: Path
    saved: Path  # parent of `single`, `stacked`, and of `other`, a model of another seed

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    def write_config(self, config: dict[str, Any]) -> None:
        (self.path / "config.json").write_text(json.dumps(config))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path / SINGLE)

    def write(self, tensors: dict[str, Tensor], file: str = SINGLE) -> None:
        (self.path / file).parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.path / file, {"format": "pt"})

    def split(self, folder: str = "", index: bool = True) -> dict[str, str]:
        """Cut the file into three, in `folder`, with an index. Returns its weight_map."""
        tensors, files = self.tensors, {}
        for number in range(3):
            file = f"{folder}model-0000{number + 1}-of-00003.safetensors"
            part = {name: tensors[name] for name in sorted(tensors)[number::3]}
            self.write(part, file)
            files |= dict.fromkeys(part, file)
        (self.path / SINGLE).unlink()
        if index:
            self.write_index(files)
        return files

    def write_index(self, files: dict[str, str], **more: Any) -> None:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": files} | more)
        (self.path / INDEX).write_text(text)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("saved")
    write_model(parent / "single")
    write_model(parent / "stacked", save_original_format=False)
    write_model(parent / "other", seed=7)
    return parent


def of_transformers(path: Path) -> Tensor | None:
    """Logits of what transformers makes of a directory; None where it refuses, or draws weights at random."""
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        with torch.no_grad():
            found = model.eval()(IDS).logits
    except Exception:  # of many kinds: what matters is that it does not work
        return None
    return None if info["missing_keys"] or info["mismatched_keys"] else found


def of_octavo(path: Path) -> Tensor:
    with torch.no_grad():
        return logits(from_huggingface(path), IDS)


def described(path: Path) -> list[str]:
    """Open a directory as a dry run does. Returns its remarks."""
    directory, remarks = directory_or_description(path)
    survey_directory(directory).require(towers=True)
    return remarks


@pytest.fixture(scope="session")
def expected(saved: Path) -> Tensor:
    found = of_transformers(saved / "single")
    assert found is not None
    return found


# ---- ways to change a directory

Change = Callable[[Variant], object]


def keys(**changed: Any) -> Change:
    return lambda at: at.write_config(at.config | changed)


def without(*names: str, **changed: Any) -> Change:
    return lambda at: at.write_config({key: v for key, v in at.config.items() if key not in names} | changed)


def rope(**changed: Any) -> Change:
    return lambda at: at.write_config(at.config | {"rope_parameters": at.config["rope_parameters"] | changed})


def text(change: Callable[[str], str], encoding: str = "utf-8") -> Change:
    def apply(at: Variant) -> None:
        file = at.path / "config.json"
        file.write_text(change(file.read_text()), encoding=encoding)

    return apply


def twice(value: str) -> Change:
    return text(lambda config: f'{{"norm_topk_prob": {value}, {config.lstrip()[1:]}')


def nested(at: Variant) -> None:
    at.write_config({**at.config, "text_config": at.config})


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda at: at.write(at.tensors | {name: change(at.tensors[name])})


def filled(value: float) -> Change:
    return tensor(EXPERT, lambda weight: weight.index_fill(1, torch.tensor([5]), value))


def shards(folder: str = "", index: bool = True) -> Change:
    return lambda at: at.split(folder, index)


def stale_index(at: Variant) -> None:
    """As `save_pretrained` leaves it that writes one file over several."""
    kept = (at.path / SINGLE).read_bytes()
    for file in set(at.split().values()):
        (at.path / file).unlink()
    (at.path / SINGLE).write_bytes(kept)


def newer_file(at: Variant) -> None:
    at.split()
    shutil.copy(at.saved / "other" / SINGLE, at.path)


def older_shard_is_left(at: Variant) -> None:
    newer_file(at)
    (at.path / SHARD).unlink()


def linked_files(at: Variant) -> None:
    at.split()
    (at.path / "blobs").mkdir()
    for number, file in enumerate(sorted(at.path.glob("model-*"))):
        file.rename(at.path / "blobs" / str(number))
        file.symlink_to(f"blobs/{number}")


def linked_directory(at: Variant) -> None:
    at.path.rename(at.path.parent / "real")
    at.path.symlink_to("real")


def dangling_shard(index: bool) -> Change:
    def apply(at: Variant) -> None:
        at.split(index=index)
        (at.path / SHARD).unlink()
        (at.path / SHARD).symlink_to("/nonexistent")

    return apply


def dangling_file_over_shards(at: Variant) -> None:
    at.split()
    (at.path / SINGLE).symlink_to("/nonexistent")


def dangling_index(at: Variant) -> None:
    at.split()
    (at.path / INDEX).unlink()
    (at.path / INDEX).symlink_to("/nonexistent")


def one_name_in_two_shards(index: bool) -> Change:
    def apply(at: Variant) -> None:
        other = load_file(at.saved / "other" / SINGLE)
        files = at.split(index=index)
        here = load_file(at.path / files[EXPERT])
        file = next(file for file in files.values() if file != files[EXPERT])
        at.write(load_file(at.path / file) | {EXPERT: other[EXPERT]}, file)
        assert EXPERT in here

    return apply


def no_embedding_shard(at: Variant) -> None:
    files = at.split(index=False)
    (at.path / files["model.embed_tokens.weight"]).unlink()


def outside(at: Variant) -> None:
    files = at.split("sub/")
    (at.path / "sub").rename(at.path.parent / "weights")
    at.write_index({name: f"../weights/{Path(file).name}" for name, file in files.items()})


def no_metadata(at: Variant) -> None:
    files = at.split()
    (at.path / INDEX).write_text(json.dumps({"weight_map": files}))


def index_of_one(at: Variant) -> None:
    at.write_index(dict.fromkeys(at.tensors, SINGLE))


def index_of_two_models(at: Variant) -> None:
    """The same name for two files: the last one counts in JSON."""
    files = at.split()
    shutil.copy(at.saved / "other" / SINGLE, at.path / "model-other.safetensors")
    entries = [*files.items(), *((name, "model-other.safetensors") for name in files)]
    pairs = ", ".join(f"{json.dumps(name)}: {json.dumps(file)}" for name, file in entries)
    (at.path / INDEX).write_text(f'{{"metadata": {{}}, "weight_map": {{{pairs}}}}}')


def beside(file: str) -> Change:
    return lambda at: shutil.copy(at.saved / "other" / SINGLE, at.path / file)


def stacked(*layers: int, keep: bool = False) -> Change:
    """Stacks as transformers 5 holds them, in these layers."""

    def apply(at: Variant) -> None:
        stacks = load_file(at.saved / "stacked" / SINGLE)
        chosen = {
            name: t for name, t in stacks.items() if any(f"layers.{layer}.mlp.experts." in name for layer in layers)
        }
        assert all(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in chosen)
        apart = {
            name: t
            for name, t in at.tensors.items()
            if keep or not any(f"layers.{layer}.mlp.experts." in name for layer in layers)
        }
        at.write(apart | chosen)

    return apply


def body_only(at: Variant) -> None:
    """As the model without its head is saved."""
    at.write({name.removeprefix("model."): t for name, t in at.tensors.items() if name != "lm_head.weight"})


def bare_names(at: Variant) -> None:
    at.write({name.removeprefix("model."): t for name, t in at.tensors.items()})


def adapter(at: Variant) -> None:
    (at.path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))


def narrow(at: Variant) -> None:
    at.write({name: t.bfloat16() for name, t in at.tensors.items()})
    at.write_config(at.config | {"dtype": "bfloat16"})


# What was done to the directory -> the change, and READ or what the error names: a key, or a file of the directory.
ROWS: dict[str, tuple[Change, str]] = {
    # keys absent, null, and at other values
    "as transformers wrote it": (lambda at: None, READ),
    "norm_topk_prob absent": (without("norm_topk_prob"), "norm_topk_prob"),
    "norm_topk_prob null": (keys(norm_topk_prob=None), "norm_topk_prob"),
    "norm_topk_prob false": (keys(norm_topk_prob=False), "norm_topk_prob"),
    "rms_norm_eps absent": (without("rms_norm_eps"), READ),
    "num_experts_per_tok absent": (without("num_experts_per_tok"), READ),
    "num_experts_per_tok null": (keys(num_experts_per_tok=None), "num_experts_per_tok"),
    "num_hidden_layers absent": (without("num_hidden_layers"), "."),
    "num_hidden_layers 1": (keys(num_hidden_layers=1), "."),
    "head_dim absent": (without("head_dim"), READ),
    "head_dim null": (keys(head_dim=None), READ),
    "hidden_act absent": (without("hidden_act"), READ),
    "hidden_act gelu": (keys(hidden_act="gelu"), "hidden_act"),
    "hidden_act swish": (keys(hidden_act="swish"), READ),
    "tie_word_embeddings absent": (without("tie_word_embeddings"), READ),
    "tie_word_embeddings true": (keys(tie_word_embeddings=True), "tie_word_embeddings"),
    "attention_bias true": (keys(attention_bias=True), "attention_bias"),
    "mlp_only_layers null": (keys(mlp_only_layers=None), READ),
    "mlp_only_layers [0]": (keys(mlp_only_layers=[0]), "mlp_only_layers"),
    "decoder_sparse_step 2": (keys(decoder_sparse_step=2), "decoder_sparse_step"),
    "sliding_window 4": (keys(sliding_window=4), READ),
    "sliding_window 4, used": (keys(sliding_window=4, use_sliding_window=True), "use_sliding_window"),
    "model_type absent": (without("model_type"), "model_type"),
    "model_type olmoe": (keys(model_type="olmoe"), "model_type"),
    "model_type qwen2_moe": (keys(model_type="qwen2_moe"), "model_type"),
    # keys of other functions
    "is_causal false": (keys(is_causal=False), "is_causal"),
    "is_causal true": (keys(is_causal=True), READ),
    "final_logit_softcapping 30": (keys(final_logit_softcapping=30.0), "final_logit_softcapping"),
    "final_logit_softcapping null": (keys(final_logit_softcapping=None), READ),
    "scoring_func sigmoid": (keys(scoring_func="sigmoid"), "scoring_func"),
    "scoring_func softmax": (keys(scoring_func="softmax", topk_method="greedy"), READ),
    "routed_scaling_factor 2.5": (keys(routed_scaling_factor=2.5), "routed_scaling_factor"),
    "routed_scaling_factor 1": (keys(routed_scaling_factor=1.0), READ),
    "first_k_dense_replace 1": (keys(first_k_dense_replace=1), "first_k_dense_replace"),
    "n_shared_experts 1": (keys(n_shared_experts=1), "n_shared_experts"),
    "attention_multiplier 0.1": (keys(attention_multiplier=0.1), "attention_multiplier"),
    "attention_multiplier 1/4": (keys(attention_multiplier=0.25), READ),
    "logits_scaling 8": (keys(logits_scaling=8.0), "logits_scaling"),
    "layer_types, one sliding": (keys(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
    "layer_types, all full": (keys(layer_types=["full_attention"] * 2), READ),
    "router_n_groups 2": (keys(router_n_groups=2), "router_n_groups"),
    "per_layer_config": (keys(per_layer_config={"1": {"rms_norm_eps": 0.1}}), "per_layer_config"),
    "configuration_files": (keys(configuration_files=["config.4.0.0.json"]), "configuration_files"),
    "transformers_weights": (keys(transformers_weights="other.safetensors"), "transformers_weights"),
    # positions
    "rope_theta at the top too, another": (keys(rope_theta=10000.0), "rope_theta"),
    "rope_theta at the top too, the same": (keys(rope_theta=500.0), READ),
    "rope_theta at the top only": (without("rope_parameters", rope_theta=500.0), READ),
    "rope_theta at the top, rope_parameters null": (keys(rope_parameters=None, rope_theta=500.0), READ),
    "rope_theta nowhere": (without("rope_parameters"), READ),
    "rope_theta null": (without("rope_parameters", rope_theta=None), "rope_theta"),
    "rope_scaling of default type, theta inside": (
        without("rope_parameters", rope_scaling={"rope_type": "default", "rope_theta": 500.0}), READ
    ),
    "rope_scaling null beside rope_parameters": (keys(rope_scaling=None), READ),
    "rope_scaling beside rope_parameters, another": (
        keys(rope_scaling={"rope_type": "default", "rope_theta": 10000.0}), "rope_parameters"
    ),
    "rope_scaling without theta beside rope_parameters": (
        keys(rope_scaling={"rope_type": "default"}), "rope_parameters"
    ),
    "rope_type yarn": (rope(rope_type="yarn", factor=4.0), "rope_type"),
    "rope_type null": (rope(rope_type=None), READ),
    "type linear beside rope_type default": (rope(type="linear", factor=4.0), "type"),
    "rope factor 4": (rope(factor=4.0), "factor"),
    "partial_rotary_factor 0.5": (keys(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "partial_rotary_factor 0.5 inside": (rope(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "rope_parameters by layer type": (
        keys(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 500.0}}), "full_attention"
    ),
    "fope_init_factor": (rope(fope_init_factor=0.5), "fope_init_factor"),
    # keys doubled and contradictory, and the file itself
    "num_experts beside num_local_experts, the same": (keys(num_experts=8, num_local_experts=8), READ),
    "num_experts beside num_local_experts, another": (keys(num_experts=8, num_local_experts=4), "num_local_experts"),
    "num_experts only": (without("num_local_experts", num_experts=8), READ),
    "a text_config in a text model": (nested, "text_config"),
    "a key twice, with one value": (twice("true"), READ),
    "a key twice, with two values": (twice("false"), "config.json"),
    "a byte order mark": (text(lambda config: "\ufeff" + config), "config.json"),
    "UTF-16": (text(lambda config: config, "utf-16"), "config.json"),
    "a list": (text(lambda config: f"[{config}]"), "config.json"),
    # files
    "shards": (shards(), READ),
    "shards without an index": (shards(index=False), READ),
    "shards in a sub-directory": (shards("sub/"), READ),
    "shards outside": (outside, READ),
    "shards that are links": (linked_files, READ),
    "the directory is a link": (linked_directory, READ),
    "a shard is a dangling link": (dangling_shard(index=True), SHARD),
    "a shard is a dangling link, no index": (dangling_shard(index=False), SHARD),
    "a dangling single file over shards": (dangling_file_over_shards, READ),
    "the index is a dangling link": (dangling_index, READ),
    "an index without metadata": (no_metadata, READ),
    "an index of the single file": (index_of_one, READ),
    "an index left over a single file": (stale_index, READ),
    "old shards beside a newer single file": (newer_file, "."),
    "some old shards beside a newer single file": (older_shard_is_left, "."),
    "an index with names twice": (index_of_two_models, INDEX),
    "a name in two shards": (one_name_in_two_shards(index=True), "model-00003-of-00003.safetensors"),
    "a name in two shards, no index": (one_name_in_two_shards(index=False), "model-00003-of-00003.safetensors"),
    "a numbered file beside the single one": (beside(SHARD), SHARD),
    "a variant beside the single file": (beside("model.fp16.safetensors"), READ),
    "no embedding, no index": (no_embedding_shard, "."),
    # layouts
    "experts stacked": (stacked(0, 1), READ),
    "experts stacked in one layer": (stacked(1), READ),
    "experts stacked and apart": (stacked(1, keep=True), "."),
    "without a head": (body_only, "."),
    "names without a prefix": (bare_names, READ),
    "bfloat16": (narrow, READ),
    "an adapter beside the weights": (adapter, "adapter_config.json"),
    "a weight that is NaN": (filled(float("nan")), SINGLE),
    "a weight that is infinite": (filled(float("-inf")), SINGLE),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_logits_are_those_of_transformers_or_the_reason_is_named(tmp_path, saved, expected, row):
    change, verdict = ROWS[row]
    at = Variant(tmp_path / "model", saved)
    shutil.copytree(saved / "single", at.path)
    change(at)
    if verdict != READ:
        if not row.startswith("a weight"):  # those are read later
            with pytest.raises(HuggingFaceError) as refused:
                described(at.path)
            assert refused.value.where in (verdict, str(at.path / verdict))
        with pytest.raises(HuggingFaceError) as refused:
            of_octavo(at.path)
        assert refused.value.where in (verdict, str(at.path / verdict))
        assert refused.value.allowed is not None
        assert len(refused.value.lines) == 1
        return
    assert described(at.path) == []
    theirs = of_transformers(at.path)
    assert relative(of_octavo(at.path), expected if theirs is None else theirs) < BOUND


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model.", ""])
@pytest.mark.parametrize("lacking", ["embedding", "all but one layer"])
def test_missing_tensors_have_the_names_of_the_others(tmp_path, saved, prefix, lacking):
    at = Variant(tmp_path / "model", saved)
    shutil.copytree(saved / "single", at.path)
    whole = {name.replace("model.", prefix): tensor for name, tensor in at.tensors.items()}
    layer = f"{prefix}layers.1."
    kept = {n: t for n, t in whole.items() if ("embed_tokens" not in n if lacking == "embedding" else layer in n)}
    at.write(kept)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(at.path)
    assert set(refused.value.value) == {f"no tensor {name}" for name in whole.keys() - kept.keys()}


def test_files_of_one_name_in_two_folders_are_two_files(tmp_path, saved):
    """An upcycling resumes only where all files are as they were."""
    at = Variant(tmp_path / "model", saved)
    shutil.copytree(saved / "single", at.path)
    tensors = at.tensors
    files = {name: ("a" if number % 2 else "b") + "/part.safetensors" for number, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        at.write({name: tensor for name, tensor in tensors.items() if files[name] == file}, file)
    (at.path / SINGLE).unlink()
    at.write_index(files)
    before = identity(survey_directory(open_directory(at.path)))
    assert {"a/part.safetensors", "b/part.safetensors"} < before.keys()
    for folder in ("a", "b"):
        os.utime(at.path / folder / "part.safetensors", (1, 1))
        after = identity(survey_directory(open_directory(at.path)))
        assert after != before
        before = after
