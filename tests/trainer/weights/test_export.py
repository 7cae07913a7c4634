"""From a published directory through a training checkpoint to a directory again, at any layout of ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from parallel.fp8 import fake_quantize
from parallel.mesh import Meshes
from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import build, logits, model_config, relative
from tests.trainer.spread import whole
from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.directories import checkpoint
from tests.trainer.weights.exports import EIGHT, ONE, assert_bitwise, config, in_bf16, loaded, save_at_once
from trainer.checkpoint import slices
from trainer.checkpoint.errors import CheckpointError
from trainer.objectives.choose import build_objective
from trainer.parallelize import build_meshes
from trainer.run.build import build_model
from trainer.run.process import train
from trainer.storage.boxes import StoredTensor
from trainer.storage.manifest import CHECKPOINT
from trainer.weights import kept_source as carried
from trainer.weights.export import export
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_read import fill, from_huggingface
from trainer.weights.hf_survey import survey_directory

DTYPE = ("dtype", "torch_dtype")  # the new and the old name of one key


@pytest.mark.parametrize(
    "kinds",
    [
        {"interns1": "bf16", "interns1_pro": "fp32"},
        pytest.param({"interns1": "fp32", "interns1_pro": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=lambda kinds: "-".join(kinds.values()),
)
def test_round_trips_at_ep_8_are_bitwise(tmp_path, reference, kinds):
    """Both published layouts, in FP32 and in BF16: every tensor of the text model and of the towers, by name."""
    sources = []
    for name, kind in kinds.items():
        published = reference / "tiny" / name
        (tmp_path / name).mkdir()
        sources.append(in_bf16(published, tmp_path / name / "bf16") if kind == "bf16" else published)
    runs = [tmp_path / f"run{number}" for number in range(len(sources))]
    on_ranks(8, _save_all, sources, runs, timeout_s=180.0)
    for source, run in zip(sources, runs, strict=True):
        target = run.with_name(run.name + "-out")
        done = export(run, target, shard_bytes=400_000)
        assert done.carried == (95 if "interns1_pro" in str(source) else 40)
        assert len(list(target.glob("*.safetensors"))) > 2
        assert_bitwise(loaded(target), loaded(source))
        before, after = (json.loads((directory / "config.json").read_text()) for directory in (source, target))
        stored = "bfloat16" if source.name == "bf16" else "float32"
        said = {part.pop(name, stored) for part in (after, after["text_config"]) for name in DTYPE}
        assert said == {stored}
        for part, name in product((before, before["text_config"]), DTYPE):
            part.pop(name, None)
        assert ("auto_map" in after) == ("interns1_pro" in str(source))  # the code that the export carries
        after.pop("auto_map", None)
        assert after == before


def _save_all(sources: list[Path], runs: list[Path]) -> None:
    for source, run in zip(sources, runs, strict=True):
        save_at_once(source, run, EIGHT)


# ---- reading at any layout


def read_at(source: Path, layouts: list[tuple[int, int, int]]) -> list[tuple[int, dict[str, Tensor]]]:
    """For each layout the bytes that this rank reads, and the weights of all ranks put together."""
    found = []
    for layout in layouts:
        world = start_world("cpu")
        cfg, counts = config(source, Path("unused"), layout), []
        meshes: Meshes | None = build_meshes(cfg, "cpu")
        opened = survey_directory(open_directory(source))
        objective = build_objective(cfg.train)
        model = build_model(
            cfg, world, meshes, objective, lambda model, counts=counts, o=opened: counts.append(fill(model, o))
        )
        found.append((counts[0], {name: whole(tensor) for name, tensor in model.state_dict().items()}))
        world.close()
    return found


def test_every_layout_reads_the_same_and_each_rank_its_own_part(tmp_path):
    """Router groups on ranks of their own, two to a rank, and split over two ranks by width."""
    model = build(model_config(num_experts=16, router_groups=4, experts_per_token=4, expert_width=16, hidden_size=32))
    written = checkpoint(tmp_path / "there", model)
    source = written.write(shards=2)
    layouts = [(1, 8, 4), (2, 4, 2), (1, 8, 8)]
    ranks = on_ranks(8, read_at, source, layouts, timeout_s=120.0)
    expected = from_huggingface(source).state_dict()
    tables = sum(buffer.nbytes for _, buffer in model.named_buffers())
    text = sum(tensor.nbytes for tensor in written.tensors.values()) - tables
    for number, (copies, shard, _) in enumerate(layouts):
        assert_bitwise(ranks[0][number][1], expected)
        read = sum(rank[number][0] for rank in ranks)
        assert read == copies * text + copies * shard * tables


# ---- what the exported model computes


def test_a_model_of_our_own_is_transformers_qwen3_moe(tmp_path, monkeypatch):
    """In fp32 and in FP8, whose codes and scales another program turns into the same values."""
    sizes = {"router_groups": 1, "positions": "rope", "hidden_size": 128, "expert_width": 128, "num_layers": 1}
    assert (
        train(tiny_config(tmp_path / "run", steps=2, lr=0.05, model={**sizes, "num_kv_heads": 4, "head_dim": 32})) == 0
    )
    from transformers import FineGrainedFP8Config, Qwen3MoeForCausalLM
    from transformers.quantizers import quantizer_finegrained_fp8

    # It asks for the package although it is not needed on a CPU.
    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda *version: True)
    blocks = {"quantization_config": FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128))}
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(2))
    found = {}
    for dtype in ("fp32", "fp8"):
        done = export(tmp_path / "run", tmp_path / dtype, dtype=dtype)
        assert done.warnings == []
        more = blocks if dtype == "fp8" else {"dtype": torch.float32}
        theirs, told = Qwen3MoeForCausalLM.from_pretrained(tmp_path / dtype, output_loading_info=True, **more)
        assert not any(told.values()), told
        found[dtype] = theirs.float()(input_ids=ids).logits
        ours = logits(from_huggingface(tmp_path / dtype), ids)
        assert (found[dtype] - ours).abs().max() <= 1e-5
    assert relative(found["fp8"], found["fp32"]) > 1e-3


def test_intern_s1s_text_model_is_transformers_qwen3_moe(tmp_path, reference):
    """With and without towers: the logits that are published with the checkpoint."""
    from transformers import Qwen3MoeForCausalLM

    published = reference / "tiny" / "interns1"
    save_at_once(published, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "text", text_only=True)
    stored = load_file(published / "ref.safetensors")
    theirs, told = Qwen3MoeForCausalLM.from_pretrained(tmp_path / "text", output_loading_info=True)
    assert not any(told.values()), told
    assert (theirs(input_ids=stored["text_input_ids"]).logits - stored["text_logits"]).abs().max() <= 1e-5
    export(tmp_path / "run", tmp_path / "all")
    ours = logits(from_huggingface(tmp_path / "all"), stored["text_input_ids"])
    assert (ours - stored["text_logits"]).abs().max() <= 1e-5


def test_intern_s1_pro_without_towers(tmp_path, reference):
    published = reference / "tiny" / "interns1_pro"
    save_at_once(published, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "text", text_only=True)
    opened = survey_directory(open_directory(tmp_path / "text"))
    opened.require(towers=True)
    assert opened.carried == []
    assert opened.prefix == "model.language_model."
    stored = load_file(published / "ref.safetensors")
    found = logits(from_huggingface(tmp_path / "text"), stored["text_input_ids"])
    assert (found - stored["text_logits"]).abs().max() <= 1e-5


# ---- FP8


def test_fp8_is_made_from_the_bf16_values(tmp_path, reference):
    published = reference / "tiny" / "interns1_pro"
    save_at_once(published, tmp_path / "run", ONE)
    done = export(tmp_path / "run", tmp_path / "fp8", dtype="fp8")
    assert done.dtypes == "BF16, F32, F8_E4M3"
    assert any("expert_width=32" in warning for warning in done.warnings)
    before, after = from_huggingface(published).state_dict(), from_huggingface(tmp_path / "fp8").state_dict()
    pieces = survey_directory(open_directory(published)).pieces
    assert sum(piece.matrix for piece in pieces) == 3 * (4 + 32 * 3)
    for piece in pieces:
        expected = before[piece.parameter][piece.box].reshape(piece.shape)
        if not piece.parameter.startswith("rotary."):
            expected = expected.bfloat16()
        if piece.matrix:
            expected = fake_quantize(expected, (128, 128))
        assert torch.equal(after[piece.parameter][piece.box].reshape(piece.shape), expected.float()), piece.name
    stored = loaded(tmp_path / "fp8")
    towers = {name: tensor for name, tensor in loaded(published).items() if "visual" in name or "time_series" in name}
    assert_bitwise({name: stored[name] for name in towers}, towers)
    quantised = json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"]
    skipped = set(quantised.pop("modules_to_not_convert"))
    assert quantised == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    text = "model.language_model."
    layer = f"{text}layers.1."
    assert {"lm_head", text + "embed_tokens", text + "norm", text + "rotary_emb", layer + "mlp.gate",
            layer + "self_attn.q_norm", layer + "input_layernorm",
            "model.visual.blocks.0.attn.qkv"} <= skipped  # fmt: skip
    assert not [name for name in skipped if "_proj" in name and "language_model" in name]


def test_fp8_through_a_run_keeps_every_value(tmp_path, reference):
    """Also where the source is one of ours; `test_fp8_again` compares bytes."""
    save_at_once(reference / "tiny" / "interns1", tmp_path / "first", ONE)
    export(tmp_path / "first", tmp_path / "a", dtype="fp8")
    save_at_once(tmp_path / "a", tmp_path / "second", ONE)
    done = export(tmp_path / "second", tmp_path / "b")
    assert "F8_E4M3" in done.dtypes
    assert_bitwise(from_huggingface(tmp_path / "b").state_dict(), from_huggingface(tmp_path / "a").state_dict())
    a, b = loaded(tmp_path / "a"), loaded(tmp_path / "b")
    assert {name: tensor.dtype for name, tensor in a.items()} == {name: tensor.dtype for name, tensor in b.items()}
    assert "quantization_config" in json.loads((tmp_path / "b" / "config.json").read_text())
    export(tmp_path / "second", tmp_path / "c", dtype="bf16")
    assert "quantization_config" not in json.loads((tmp_path / "c" / "config.json").read_text())
    assert_bitwise(from_huggingface(tmp_path / "c").state_dict(), from_huggingface(tmp_path / "a").state_dict())


# ---- other sources


def test_stacked_experts_and_old_names_are_written_in_the_first_spelling(tmp_path):
    model = build(model_config())
    written = checkpoint(tmp_path / "old", model, prefix="language_model.model.", layout="fused")
    written.tensors["language_model.lm_head.weight"] = written.tensors.pop("lm_head.weight")
    text = written.config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    source = written.write()
    (source / "tokenizer.json").write_text("{}")
    save_at_once(source, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "out")
    assert_bitwise(loaded(tmp_path / "out"), {n: t.detach() for n, t in checkpoint(tmp_path, model).tensors.items()})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_local_experts"] == 12
    assert "num_experts" not in config["text_config"]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_grouped_model_of_our_own(tmp_path):
    """No published code has such a model without towers: it is written as Intern-S1-Pro's text model."""
    assert train(tiny_config(tmp_path / "run", steps=1, model={"fope_pad_sin": 0.0})) == 0
    done = export(tmp_path / "run", tmp_path / "out")
    assert any("fope_pad_sin=0" in warning for warning in done.warnings)
    opened = survey_directory(open_directory(tmp_path / "out"))
    opened.require(towers=True)
    expected = tiny_config(tmp_path, model={"fope_pad_sin": 0.0}).model
    assert opened.model == replace(expected, router_gradient=opened.model.router_gradient)
    assert opened.kinds["rotary_emb.cos_coef"] == "F32"
    assert opened.kinds["embed_tokens.weight"] == "BF16"


def in_f16(directory: Path) -> Path:
    """All F16 but for one matrix, which is BF16."""
    written = checkpoint(directory, build(model_config()))
    written.tensors = {name: tensor.detach().half() for name, tensor in written.tensors.items()}
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    written.tensors[name] = written.tensors[name].bfloat16()
    return written.write()


def test_f16_comes_out_as_it_went_in_and_fp32_where_it_and_bf16_meet(tmp_path):
    source = in_f16(tmp_path / "source")
    save_at_once(source, tmp_path / "run", ONE)
    export(tmp_path / "run", tmp_path / "out")
    expected = {n: t.float() if "q_proj" in n else t for n, t in loaded(source).items()}
    assert_bitwise(loaded(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_what_f16_cannot_hold_is_reported(tmp_path, monkeypatch):
    save_at_once(in_f16(tmp_path / "source"), tmp_path / "run", ONE)
    genuine = slices.StoredState.read
    monkeypatch.setattr(slices.StoredState, "read", lambda *args: genuine(*args).fill_(1e5))
    monkeypatch.setattr(slices.StoredState, "compare_one", lambda self: None)
    with pytest.raises(CheckpointError) as refused:
        export(tmp_path / "run", tmp_path / "out")
    error = refused.value
    assert (error.where, error.value, error.allowed) == ("--dtype", "source", "another --dtype")
    assert not (tmp_path / "out").exists()


# ---- what stops an export


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    save_at_once(reference / "tiny" / "interns1", directory / "run", ONE)
    return directory / "run"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# A file or directory of the run that is flipped or removed.
FLIPPED = ["checkpoints/step-0/__0_0.distcp", "checkpoints/step-0/.metadata", "source/model-00001-of-00001.safetensors"]
REMOVED = ["checkpoints/step-0/__0_0.distcp", "checkpoints/step-0/manifest.json", "config.yaml", "source"]


def refused_export(run: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as failure:
        export(run, run.parent / "out")
    assert len(failure.value.lines) == 1
    assert failure.value.allowed
    assert not (run.parent / "out").exists()
    return failure.value


@pytest.mark.parametrize("name", FLIPPED)
def test_a_changed_file_is_not_exported(tmp_path, trained, name):
    run = shutil.copytree(trained, tmp_path / "run")
    flip(run / name)
    error = refused_export(run)
    assert (error.where, error.value) == (str(run / name), CHECKPOINT.file_facts(run / name)["sha256"])


@pytest.mark.parametrize("name", REMOVED)
def test_a_run_that_lacks_a_file_is_not_exported(tmp_path, trained, name):
    run = shutil.copytree(trained, tmp_path / "run")
    (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)
    error = refused_export(run)
    assert (error.where, error.value) == (str(run / name), None)
    assert name != "source" or error.allowed == "--text-only and a --dtype other than source"


def test_a_run_without_checkpoints_is_not_exported(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    error = refused_export(run)
    assert (error.where, error.allowed) == (str(run), "a run directory, or a step-N directory in one")


def test_weights_that_the_runs_configuration_does_not_describe_are_not_exported(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    edit(run / "config.yaml", "vocab_size: 320", "vocab_size: 319")
    error = refused_export(run)
    assert error.where == str(run / "checkpoints" / "step-0")
    assert [line.split()[0] for line in error.value] == ["model.embed", "model.lm_head"]


def test_a_kept_source_of_another_model_is_not_exported(tmp_path, trained):
    """It is whole."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "source")
    other = checkpoint(tmp_path / "another", build(model_config())).write()
    carried._keep(survey_directory(open_directory(other)), run / "source", lambda: None)
    error = refused_export(run)
    assert error.where == str(run / "source")
    assert any({"model.vocab_size", "320", "61"} <= set(line.split()) for line in error.value)


def test_a_torch_that_gives_no_offset_or_a_wrong_one(tmp_path, trained, monkeypatch):
    with monkeypatch.context() as silent:
        silent.setattr(slices.torch, "load", lambda view, **_: torch.empty(16, 64, device="meta"))
        with pytest.raises(CheckpointError) as refused:
            export(trained, tmp_path / "out")
    assert refused.value.where.endswith(".distcp")
    assert (refused.value.value, refused.value.allowed) == (torch.__version__, "torch 2.13")
    genuine = slices.StoredState._locate

    def later(self: slices.StoredState, *args: Any) -> StoredTensor:
        chunk = genuine(self, *args)
        return replace(chunk, start=chunk.start + 4)

    monkeypatch.setattr(slices.StoredState, "_locate", later)
    with pytest.raises(CheckpointError) as refused:
        export(trained, tmp_path / "out")
    assert refused.value.where == str(trained / "checkpoints" / "step-0")
    assert (refused.value.value, refused.value.allowed) == (torch.__version__, "torch 2.13")
    assert not (tmp_path / "out").exists()


def test_a_file_that_ends_early_is_the_checkpoints_fault(tmp_path, trained):
    """One that went after its hash was compared."""
    step = shutil.copytree(trained / "checkpoints" / "step-0", tmp_path / "step-0")
    state = slices.StoredState(step)
    (rows, columns) = state.shape("model.lm_head") or ()
    box = (slice(0, rows), slice(0, columns))
    state.read("model.lm_head", box)  # opened
    (step / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError) as refused:
        state.read("model.lm_head", box)
    assert (refused.value.where, refused.value.value) == (str(step / "__0_0.distcp"), "model.lm_head")


def test_a_run_that_lost_its_source_exports_what_is_asked_for_by_name(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "source")
    for options in ({"dtype": "bf16"}, {"text_only": True}):
        with pytest.raises(CheckpointError) as refused:
            export(run, tmp_path / "out", **options)
        assert refused.value.where == str(run / "source")
    assert export(run, tmp_path / "out", dtype="fp32", text_only=True).carried == 0
    found = loaded(tmp_path / "out")
    assert len(found) == 174
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_an_existing_target_is_reported_before_anything_is_read(tmp_path, trained, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    flip(run / "checkpoints" / "step-0" / "__0_0.distcp")
    (tmp_path / "out").mkdir()
    with pytest.raises(HuggingFaceError) as refused:
        export(run, tmp_path / "out")
    assert refused.value.where == str(tmp_path / "out")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("trainer.weights.hf_write.shutil.disk_usage", lambda place: free)
    with pytest.raises(HuggingFaceError) as refused:
        export(run, tmp_path / "new")
    assert (refused.value.where, refused.value.value) == (str(tmp_path / "new"), 1000)


def test_the_newest_step_or_the_one_that_is_named(tmp_path, trained):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(run / "checkpoints" / "step-0", run / "checkpoints" / "step-10.damaged")
    shutil.move(shutil.copytree(run / "checkpoints" / "step-0", tmp_path / "kept"), run / "checkpoints" / "step-2")
    flip(run / "checkpoints" / "step-0" / "__0_0.distcp")
    with pytest.raises(CheckpointError) as refused:
        export(run / "checkpoints" / "step-0", tmp_path / "out")
    assert refused.value.where == str(run / "checkpoints" / "step-0" / "__0_0.distcp")
    for place in (run, run / "checkpoints", run / "checkpoints" / "step-2"):
        target = tmp_path / f"out-{place.name}"
        assert export(place, target).step == 0
        assert len(loaded(target)) == 214
