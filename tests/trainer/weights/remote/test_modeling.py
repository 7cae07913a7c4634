"""The modelling code that exports carry, run by transformers beside the model that was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.trainer.model.tiny import build, logits, model_config, random_ids
from tests.trainer.weights.code_folder import code_folder
from tests.trainer.weights.directories import checkpoint
from tests.trainer.weights.exports import ONE, save_at_once
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Request, Sampling
from trainer.model.decoder import Decoder
from trainer.weights.beside.remote_code import CLASSES, FILES, attach_code
from trainer.weights.export import export
from trainer.weights.hf_files import read_json
from trainer.weights.hf_read import from_huggingface

MODELS: dict[str, dict[str, Any]] = {
    "fope": {},
    "one of each group": {"experts_per_token": 2, "fope_pad_sin": 0.0},
    "rope": {"positions": "rope", "num_kv_heads": 6},
    "one group": {"router_groups": 1, "rope_theta": 1e4},
}

VISION_KEYS = (
    "model_type", "hidden_size", "depth", "num_heads", "intermediate_size", "in_channels", "temporal_patch_size",
    "patch_size", "spatial_merge_size", "num_position_embeddings", "out_hidden_size", "hidden_act",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code that it runs into a folder of its own."""
    with code_folder(tmp_path_factory.mktemp("modules")):
        yield


def exported(directory: Path, **sizes: Any) -> Path:
    """A model as a run exports it, in FP32, so that both sides compute in it."""
    written = checkpoint(directory / "source", build(model_config(**sizes)))
    del written.config["vision_config"]
    text, sizes = written.config["text_config"], {"positions": "fope", **sizes}
    if sizes["positions"] == "rope":
        del text["rope_scaling"]
    elif "fope_pad_sin" in sizes:
        text["rope_scaling"]["fope_pad_sin"] = sizes["fope_pad_sin"]
    save_at_once(written.write(), directory / "run", ONE)
    export(directory / "run", directory / "exported")
    return directory / "exported"


def load(directory: Path, **arguments: Any) -> PreTrainedModel:
    arguments = {"dtype": torch.float32, **arguments}
    model, told = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True, **arguments
    )
    assert not any(told.values()), told
    return model.eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder, PreTrainedModel]:
    directory = exported(tmp_path_factory.mktemp("fope"))
    return directory, from_huggingface(directory), load(directory)


@torch.no_grad()
def difference(theirs: PreTrainedModel, ours: Decoder, ids: Tensor) -> float:
    return float((theirs(input_ids=ids).logits - logits(ours, ids)).abs().max())


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS.keys())
def test_logits_equal_those_of_the_trained_model(tmp_path, sizes):
    directory = exported(tmp_path, **sizes)
    theirs, ours = load(directory), from_huggingface(directory)
    assert difference(theirs, ours, random_ids(ours.cfg, 2, 16)) <= 1e-5


def test_greedy_text_equals_the_engines(both):
    """Prompts of several lengths, one by one and padded on the left; what is generated is not one token alone."""
    directory, ours, theirs = both
    prompts = [random_ids(ours.cfg, 1, length, seed=length)[0].tolist() for length in (3, 7, 12)]
    engine = Engine(open_source(directory).load(torch.device("cpu")))
    answers = engine.generate([Request(prompt, 12, Sampling(temperature=0.0)) for prompt in prompts])
    expected = [list(answer.ids) for answer in answers]
    assert all(len(set(ids)) > 2 for ids in expected)
    plain: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    for prompt, wanted in zip(prompts, expected, strict=True):
        whole = torch.ones(1, len(prompt), dtype=torch.long)
        found = theirs.generate(torch.tensor([prompt]), attention_mask=whole, **plain)
        assert found[0, len(prompt) :].tolist() == wanted
    padded = torch.tensor([[0] * (12 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (12 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    assert theirs.generate(padded, attention_mask=mask, **plain)[:, 12:].tolist() == expected


@torch.no_grad()
def test_the_cache_the_last_logits_and_eager_attention_change_nothing(both):
    directory, ours, theirs = both
    ids = random_ids(ours.cfg, 2, 16)
    whole = theirs(input_ids=ids).logits
    first = theirs(input_ids=ids[:, :9], use_cache=True)
    rest = theirs(input_ids=ids[:, 9:], past_key_values=first.past_key_values, logits_to_keep=2)
    assert rest.logits.shape[1] == 2
    assert (rest.logits - whole[:, -2:]).abs().max() <= 1e-5
    assert difference(load(directory, attn_implementation="eager"), ours, ids) <= 1e-5
    given = theirs(inputs_embeds=theirs.get_input_embeddings()(ids), output_router_logits=True)
    assert torch.equal(given.logits, whole)
    assert [tuple(z.shape) for z in given.router_logits] == [(32, 12)] * 2


@torch.no_grad()
def test_routing_is_the_training_routers_on_ties_too(both):
    _, ours, theirs = both
    router, trained = deepcopy((theirs.model.language_model.layers[1].mlp.gate, ours.blocks[1].moe.router))
    router.weight[3] = router.weight[1]  # equal logits in the first group
    trained.weight[3] = trained.weight[1]
    x = torch.randn(200, ours.cfg.hidden_size, generator=torch.Generator().manual_seed(1))
    _, ids, weights = router(x)
    wanted, expected, _ = trained(x)
    assert torch.equal(ids, wanted)
    assert ((ids == 1).any(-1) & (ids == 3).any(-1)).any()
    assert ((ids == 1).any(-1) & (ids != 3).all(-1)).any()
    assert (weights - expected).abs().max() <= 1e-6
    router.weight.zero_()
    assert router(x[:1])[1].tolist() == [[0, 1, 6, 7]]


def test_it_trains(both, tmp_path):
    """Loss by labels, gradients with recomputed layers, and saving again."""
    directory, ours, _ = both
    theirs, ids = load(directory), random_ids(both[1].cfg, 2, 16)
    out = theirs.train()(input_ids=ids, labels=ids)
    expected = F.cross_entropy(logits(ours, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(out.loss.item() - expected.item()) <= 1e-5
    out.loss.backward()
    before = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert all(before[name].abs().sum() > 0 for name, _ in theirs.named_parameters() if "experts" not in name)
    theirs.zero_grad()  # leaves the tensors of `before` alone
    theirs.gradient_checkpointing_enable()
    theirs(input_ids=ids, labels=ids).loss.backward()
    after = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert after.keys() == before.keys()
    assert all((grad - before[name]).abs().max() <= 1e-6 for name, grad in after.items())
    theirs.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == {
        name for file in directory.glob("*.safetensors") for name in load_file(file)
    }
    for file in FILES.values():
        (tmp_path / "again" / file.name).write_bytes(file.read_bytes())
    assert difference(load(tmp_path / "again"), ours, ids) <= 1e-5


def test_in_bf16_what_octavo_computes_in_fp32_stays_so(both):
    theirs = load(both[0], dtype=torch.bfloat16)
    wide = {
        name for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()] if tensor.dtype != torch.bfloat16
    }
    assert wide == {"lm_head.weight", *(f"model.language_model.rotary_emb.{name}_coef" for name in ("cos", "sin"))}
    with torch.no_grad():
        found = theirs(input_ids=random_ids(both[1].cfg, 2, 16)).logits
        expected = logits(from_huggingface(both[0]), random_ids(both[1].cfg, 2, 16))
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() <= 0.05 * expected.abs().max()


def test_towers_are_left_out_and_the_published_logits_come_out(tmp_path, reference):
    published = reference / "tiny" / "interns1_pro"
    save_at_once(published, tmp_path / "run", ONE)
    done = export(tmp_path / "run", tmp_path / "all")
    assert {*FILES} <= {*done.side_files}
    assert "trust_remote_code=True" in (tmp_path / "all" / "README.md").read_text()
    stored, theirs = load_file(published / "ref.safetensors"), load(tmp_path / "all")
    with torch.no_grad():
        found = theirs(input_ids=stored["text_input_ids"]).logits
    assert (found - stored["text_logits"]).abs().max() <= 1e-5
    read = AutoConfig.from_pretrained(tmp_path / "all", trust_remote_code=True)
    written = read_json(tmp_path / "all" / "config.json")
    for section, keys in (("vision_config", VISION_KEYS), ("ts_config", written["ts_config"])):
        values = {key: getattr(getattr(read, section), key, None) for key in keys}
        assert values == {key: written[section].get(key) for key in keys}
    assert not hasattr(AutoConfig.from_pretrained(exported(tmp_path), trust_remote_code=True), "ts_config")


# ---- which code a directory carries


def test_code_of_the_source_stays_unless_it_is_for_another_model():
    theirs = {
        "AutoConfig": "configuration_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoProcessor": "processing_x.P",
    }
    files = ["configuration_x.py", "modeling_x.py", "processing_x.py"]
    config: dict[str, Any] = {"model_type": "interns1_pro", "auto_map": {**theirs}}
    assert attach_code(config, files, same_model=True) == {}
    assert config["auto_map"] == theirs
    assert attach_code(config, files, same_model=False) == FILES
    assert config["auto_map"] == {**CLASSES, "AutoProcessor": "processing_x.P"}
    assert attach_code(config, [*files, *FILES], same_model=True) == FILES  # ours, as it is today
    config["auto_map"] = {**theirs}
    assert attach_code(config, files[1:], same_model=True) == FILES
    assert attach_code({"model_type": "qwen3_moe"}, [], same_model=True) == {}


def test_the_code_stands_alone():
    """It names transformers, torch and its own files, and it is what an export gets, byte for byte."""
    for file in FILES.values():
        names = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(("import ", "from "))]
        roots = {name.split(".")[0] or name for name in names}
        assert roots <= {"__future__", "math", "typing", "torch", "transformers", ".configuration_octavo"}, names
    assert json.dumps(CLASSES).count("octavo") == 2
