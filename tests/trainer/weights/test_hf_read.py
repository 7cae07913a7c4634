"""Reading Hugging Face directories: layouts, spellings, dtypes, and what is said of a directory that cannot be read."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.model.tiny import assert_close, build, model_config, random_ids, relative
from tests.trainer.weights.directories import APART, FUSED, UPRIGHT, Checkpoint, checkpoint
from trainer.model.decoder import Decoder
from trainer.storage import boxes
from trainer.weights.hf_files import BITS, HuggingFaceError, open_directory
from trainer.weights.hf_read import from_huggingface, read_piece
from trainer.weights.hf_survey import survey_directory

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(scope="module")
def source() -> Decoder:
    return build(model_config())


def assert_same(model: Decoder, source: Decoder) -> None:
    assert model.cfg == model_config(init_std=model.cfg.init_std)
    assert_close(model.state_dict(), source.state_dict(), 0.0)


@pytest.mark.parametrize("layout", [APART, FUSED, UPRIGHT])
@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model."])
def test_layouts_and_prefixes(tmp_path, source, prefix, layout):
    written = checkpoint(tmp_path, source, prefix=prefix, layout=layout)
    written.tensors["model.visual.patch_embed.weight"] = torch.zeros(3)  # other modalities are passed over
    assert_same(from_huggingface(written.write()), source)


@pytest.mark.parametrize("layout", [APART, FUSED])
def test_a_sharded_directory(tmp_path, source, layout):
    directory = checkpoint(tmp_path, source, layout=layout).write(shards=3)
    save_file({"stray": torch.zeros(1)}, directory / "model-stray.safetensors")  # not of the index: not opened
    (directory / "model-stray.safetensors").write_bytes(b"no safetensors")
    assert_same(from_huggingface(directory), source)


def test_other_spellings(tmp_path, source):
    """A text-only config.json, num_local_experts, theta in rope_parameters, the head under the old prefix."""
    written = checkpoint(tmp_path, source, prefix="language_model.model.")
    text = written.config["text_config"]
    text["num_local_experts"] = text.pop("num_experts")
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    written.config = text
    written.tensors["language_model.lm_head.weight"] = written.tensors.pop("lm_head.weight")
    assert_same(from_huggingface(str(written.write())), source)


def test_head_dim_defaults_to_the_hidden_sizes_share(tmp_path):
    source = build(model_config(head_dim=4, positions="rope"))  # 24 / 6 heads
    written = checkpoint(tmp_path, source)
    del written.config["text_config"]["head_dim"]
    written.config["text_config"]["rope_scaling"] = None
    model = from_huggingface(written.write())
    assert (model.cfg.head_dim, model.cfg.positions) == (4, "rope")
    assert_close(model.state_dict(), source.state_dict(), 0.0)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtype_is_of_parameters_and_computation(tmp_path, source, dtype, wide):
    model = from_huggingface(checkpoint(tmp_path, source).write(), dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {b.dtype for b in model.buffers()} == {wide}
    expected = {name: p.detach().to(dtype) for name, p in source.named_parameters()}
    assert_close(dict(model.named_parameters()), expected, 0.0)
    ids = random_ids(model.cfg, 1, 12)
    hidden = model(ids).hidden
    assert hidden.dtype == dtype
    assert model.logits(hidden).dtype == wide


def test_a_bf16_checkpoint_is_read_exactly(tmp_path, source):
    written = checkpoint(tmp_path, source)
    written.tensors = {name: tensor.detach().bfloat16() for name, tensor in written.tensors.items()}
    model = from_huggingface(written.write())
    expected = {name: p.detach().bfloat16().float() for name, p in source.named_parameters()}
    assert_close(dict(model.named_parameters()), expected, 0.0)


def drop(key: str) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].pop(key)


def put(key: str, value: Any) -> Callable[[Checkpoint], object]:
    return lambda written: written.config["text_config"].update({key: value})


SEPARATE = {"fope_init_factor": 0.5}
# Change, key, value, what is allowed there.
REFUSED_CONFIGS = [
    (drop("vocab_size"), "vocab_size", None, ("vocab_size",)),
    (drop("num_experts"), "num_experts", None, ("num_experts", "num_local_experts")),
    (drop("moe_intermediate_size"), "moe_intermediate_size", None, ("moe_intermediate_size",)),
    (drop("num_experts_per_tok"), "num_experts_per_tok", None, ("num_experts_per_tok",)),
    (drop("rms_norm_eps"), "rms_norm_eps", None, ("rms_norm_eps",)),
    (drop("rope_theta"), "rope_theta", None, "a number in the text model or in its rope_parameters"),
    (put("max_position_embeddings", None), "max_position_embeddings", None, ("max_position_embeddings",)),
    (put("tie_word_embeddings", True), "tie_word_embeddings", True, (False,)),
    (put("attention_bias", True), "attention_bias", True, (False,)),
    (put("norm_topk_prob", False), "norm_topk_prob", False, (True,)),
    (put("mlp_only_layers", [0]), "mlp_only_layers", [0], ([],)),
    (put("decoder_sparse_step", 2), "decoder_sparse_step", 2, (1,)),
    (put("hidden_act", "gelu"), "hidden_act", "gelu", ("silu", "swish")),
    (put("use_sliding_window", True), "use_sliding_window", True, (False,)),
    (put("rope_scaling", {"rope_type": "yarn", "factor": 4.0}), "rope_type", "yarn", ("default",)),
    (put("rope_scaling", {"type": "linear", "factor": 4.0}), "type", "linear", ("default",)),
    (put("rope_scaling", SEPARATE | {"fope_sep_head": False}), "fope_sep_head", False, (True,)),
    (put("rope_scaling", SEPARATE | {"num_inv_freq": 2}), "num_inv_freq", 2, (None, 3)),
    (put("num_hidden_layers", "48"), "num_hidden_layers", "48", "a whole number above 0"),
    (put("num_attention_heads", 0), "num_attention_heads", 0, "a whole number above 0"),
    (put("hidden_size", 24.0), "hidden_size", 24.0, "a whole number above 0"),
    (put("vocab_size", True), "vocab_size", True, "a whole number above 0"),
    (put("num_experts", [12]), "num_experts", [12], "a whole number above 0"),
    (put("router_n_groups", 5), "router_n_groups", 5, "a divisor of num_experts"),
    (put("num_key_value_heads", 4), "num_key_value_heads", 4, "a divisor of num_attention_heads"),
    (put("num_experts_per_tok", 14), "num_experts_per_tok", 14, "12 (num_experts) or less"),
    (put("head_dim", 7), "head_dim", 7, "an even number"),
    (put("rope_theta", 0), "rope_theta", 0, "a number, 1 or more"),
    (put("rms_norm_eps", math.nan), "rms_norm_eps", pytest.approx(math.nan, nan_ok=True), "a number, 0 or more"),
    (put("rms_norm_eps", -1e-6), "rms_norm_eps", -1e-6, "a number, 0 or more"),
    (put("rope_scaling", "default"), "rope_scaling", "default", "an object"),
    (put("rope_scaling", {"fope_init_factor": {}}), "fope_init_factor", {}, "a number, 0 or more"),
    (put("rope_parameters", 5), "rope_parameters", 5, "an object"),
    (lambda written: written.config.update(text_config="qwen"), "text_config", "qwen", "an object"),
    (lambda written: written.config.update(vision_config=[1]), "vision_config", [1], "an object"),
    (lambda written: written.config.update(quantization_config="fp8"), "quantization_config", "fp8", "an object"),
]


@pytest.mark.parametrize(("change", "where", "value", "allowed"), REFUSED_CONFIGS)
def test_a_configuration_that_is_not_this_model_is_refused(tmp_path, source, change, where, value, allowed):
    written = checkpoint(tmp_path, source)
    change(written)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(written.write())
    (fault,) = refused.value.faults
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)
    assert isinstance(fault.value, bool) == isinstance(value, bool)  # 1 is equal to true
    assert "\n" not in fault.text
    assert f"{tmp_path}/config.json" in fault.text
    assert where in fault.text


def test_a_refused_key_is_placed_in_its_section(tmp_path, source):
    for number, (change, section) in enumerate(
        [(put("vocab_size", 0), "text model"), (put("rope_scaling", {"fope_init_factor": {}}), "rope_scaling")]
    ):
        written = checkpoint(tmp_path / str(number), source)
        change(written)
        with pytest.raises(HuggingFaceError) as refused:
            from_huggingface(written.write())
        assert section in refused.value.lines[0]


def places(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every key of a config.json with the object that it is in."""
    for key, value in config.items():
        yield config, key
        if isinstance(value, dict):
            yield from places(value)


@pytest.mark.parametrize("name", ["interns1", pytest.param("interns1_pro", marks=pytest.mark.slow)])
def test_every_value_in_a_configuration_is_judged(reference, name):
    """Each key of a published one in turn is something else: it does not matter, or one line reports it."""
    directory = open_directory(reference / "tiny" / name)
    lines = []
    for inside, key in places(directory.config):
        kept = inside[key]
        for other in (None, "x", 0, 0.5, 1e400, [0], {"x": 1}):
            inside[key] = other
            try:
                survey_directory(directory).require(towers=True)
            except HuggingFaceError as error:
                lines.append(str(error))
        inside[key] = kept
    assert len(lines) > 100
    assert all(line.startswith(str(directory.path)) and "\n" not in line for line in lines)
    survey_directory(directory).require(towers=True)


def refused_directory(written: Checkpoint) -> str:
    """The first of the problems that reading the directory reports, in one line."""
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(written.write())
    assert refused.value.where == str(written.directory)
    assert len(refused.value.lines) == 1
    return str(refused.value.value[0])


@pytest.mark.parametrize("name", ["layers.1.self_attn.k_norm.weight", "layers.0.mlp.experts.7.up_proj.weight",
                                  "rotary_emb.sin_coef"])  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path, source, name):
    written = checkpoint(tmp_path, source)
    del written.tensors["model.language_model." + name]
    assert name in refused_directory(written)


@pytest.mark.parametrize("layout", [APART, FUSED])
def test_a_wrong_shape_is_named(tmp_path, source, layout):
    written = checkpoint(tmp_path, source, layout=layout)
    name = next(name for name in written.tensors if "layers.1" in name and "experts." in name and "down" in name)
    written.tensors[name] = written.tensors[name].transpose(-1, -2)
    problem = refused_directory(written)
    assert name in problem
    assert all(str(list(shape)) in problem for shape in (written.tensors[name].shape, written.tensors[name].mT.shape))


# ---- FP8


@pytest.fixture(scope="module")
def wide() -> Decoder:
    """Matrices of several blocks, the last ones shorter."""
    return build(model_config(hidden_size=144, expert_width=136, num_experts=4, experts_per_token=2, num_layers=1))


@pytest.mark.parametrize("layout", [APART, FUSED, UPRIGHT])
def test_fp8_is_its_codes_times_its_scales(tmp_path, wide, layout):
    written = checkpoint(tmp_path, wide, layout=layout)
    written.quantise()
    model = from_huggingface(written.write())
    for name, found in model.named_parameters():
        expected = dict(wide.named_parameters())[name].detach()
        if ("attention." in name and found.ndim == 2) or ".experts." in name:
            assert 1e-3 < relative(found, expected) < 0.04, name
        else:
            assert torch.equal(found, expected), name
    attention = "model.language_model.layers.0.self_attn."
    for letter, rows in (("q", slice(0, 48)), ("k", slice(48, 64)), ("v", slice(64, 80))):
        codes, scales = (written.tensors[f"{attention}{letter}_proj.weight{end}"] for end in ("", "_scale_inv"))
        values = codes.float() * scales.repeat_interleave(128, 0)[: len(codes)].repeat_interleave(128, 1)[:, :144]
        assert torch.equal(model.blocks[0].attention.qkv[rows], values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e8m0fnu])
def test_scales_in_other_dtypes(tmp_path, wide, dtype):
    written = checkpoint(tmp_path / "a", wide)
    written.quantise()
    expected = from_huggingface(written.write())
    written.directory = tmp_path / "b"
    for name in [name for name in written.tensors if name.endswith("_scale_inv")]:
        written.tensors[name] = written.tensors[name].to(dtype)
    assert_close(from_huggingface(written.write()).state_dict(), expected.state_dict(), 0.0)


def test_other_blocks_are_refused(tmp_path, wide):
    written = checkpoint(tmp_path, wide)
    written.config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    problem = refused_directory(written)
    assert all(datum in problem for datum in ("weight_block_size", "[64, 64]", "[128, 128]"))
    assert survey_directory(open_directory(tmp_path)).unfit == [problem]  # `octavo inspect` lists these


# ---- slices


@pytest.mark.parametrize("layout", [APART, FUSED, UPRIGHT])
@pytest.mark.parametrize(("fp8", "short_run", "block_bytes"), [(False, 64, 900), (True, 64 << 10, 10**9), (True, 0, 0)])
def test_any_part_of_a_parameter_is_what_the_whole_has_there(
    tmp_path, wide, monkeypatch, layout, fp8, short_run, block_bytes
):
    """Run by run, in blocks of rows, and with both in one tensor."""
    monkeypatch.setattr(boxes, "SHORT_RUN", short_run)
    monkeypatch.setattr(boxes, "BLOCK_BYTES", block_bytes)
    written = checkpoint(tmp_path, wide, layout=layout)
    if fp8:
        written.quantise()
    source = survey_directory(open_directory(written.write(shards=2)))
    whole = from_huggingface(tmp_path).state_dict()
    draw = random.Random(4)
    for piece in source.pieces:
        for _ in range(4):
            ends = [sorted(draw.sample(range(part.start, part.stop + 1), 2)) for part in piece.box]
            box = tuple(slice(*end) for end in ends)
            values, nbytes = read_piece(source, piece, box)
            assert torch.equal(values.float(), whole[piece.parameter][box]), (piece.name, box)
            assert nbytes >= values.numel() * (1 if fp8 and piece.matrix else 4)
            assert fp8 or nbytes == values.nbytes


def test_rows_are_read_without_the_rest(tmp_path, source, monkeypatch):
    opened = survey_directory(open_directory(checkpoint(tmp_path, source).write()))
    sizes, read_into = [], boxes.read_into
    monkeypatch.setattr(
        boxes, "read_into", lambda file, run, start: (sizes.append(run.nbytes), read_into(file, run, start))
    )
    piece = next(piece for piece in opened.pieces if piece.name.endswith("down_proj.weight"))
    values, nbytes = read_piece(opened, piece, (*piece.box[:1], slice(3, 7), piece.box[2]))
    assert sizes == [nbytes] == [values.nbytes] == [4 * 20 * 4]


def test_numbers_at_odd_places(tmp_path, source):
    """Some writers do not align tensors."""
    directory = checkpoint(tmp_path, source).write()
    file = directory / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    assert_same(from_huggingface(directory), source)
    opened = survey_directory(open_directory(directory))
    piece = next(piece for piece in opened.pieces if piece.name.endswith("down_proj.weight"))
    box = (*piece.box[:2], slice(3, 7))
    assert torch.equal(read_piece(opened, piece, box)[0], source.blocks[0].moe.experts.w2[box])


# ---- what is wrong with a directory


def first(written: Checkpoint, end: str) -> str:
    return next(name for name in written.tensors if name.endswith(end))


def scaleless(written: Checkpoint) -> list[str]:
    written.quantise()
    del written.tensors[name := first(written, "up_proj.weight_scale_inv")]
    return [name.removesuffix("_scale_inv"), "F8_E4M3", name]


def other_scales(written: Checkpoint) -> list[str]:
    written.quantise()
    written.tensors[name := first(written, "up_proj.weight_scale_inv")] = torch.ones(3, 1)
    return [name, "[3, 1]", "[1, 1]"]


def quantised_norm(written: Checkpoint) -> list[str]:
    name = first(written, "input_layernorm.weight")
    written.tensors[name] = written.tensors[name].detach().to(torch.float8_e4m3fn)
    return [name, "F8_E4M3"]


def whole_numbers(written: Checkpoint) -> list[str]:
    name = first(written, "q_proj.weight")
    written.tensors[name] = written.tensors[name].detach().char()
    return [name, "I8"]


def too_many_experts(written: Checkpoint) -> list[str]:
    name = first(written, "experts.11.up_proj.weight").replace("experts.11", "experts.12")
    written.tensors[name] = torch.zeros(20, 24)
    return [name]


def stray(written: Checkpoint) -> list[str]:
    written.tensors["extra.weight"] = torch.zeros(2)
    return ["extra.weight"]


def scales_of_nothing(written: Checkpoint) -> list[str]:
    written.tensors[name := first(written, "up_proj.weight") + "_scale_inv"] = torch.ones(1, 1)
    return [name]


@pytest.mark.parametrize(
    "damage", [scaleless, other_scales, quantised_norm, whole_numbers, too_many_experts, stray, scales_of_nothing]
)
def test_a_directory_that_is_not_the_model_is_refused_in_one_line(tmp_path, source, damage):
    written = checkpoint(tmp_path, source)
    data = damage(written)
    problem = refused_directory(written)
    assert all(datum in problem for datum in data)


def test_of_many_problems_the_line_has_the_first_and_the_field_all(tmp_path, source):
    written = checkpoint(tmp_path, source)
    names = [name for name in written.tensors if name.endswith("norm.weight")][:5]
    for name in names:
        del written.tensors[name]
    with pytest.raises(HuggingFaceError) as failure:
        from_huggingface(written.write())
    (line,) = failure.value.lines
    assert [name for name in names if any(name in problem for problem in failure.value.value)] == names
    assert len(failure.value.value) == 5
    assert sum(name in line for name in names) == 3
    assert "octavo inspect" in line


def edit_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the header of a safetensors file, its length as before."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def move(name: str, by: int) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(data_offsets=[offset + by for offset in header[name]["data_offsets"]])


def twice(header: dict[str, Any]) -> None:
    header["again"] = header["lm_head.weight"]


CONTIGUOUS, COMPLETE = "tensors without gaps or overlaps", "a complete safetensors file"
WHOLE = "whole numbers, 0 or more"
# Change, value, what is allowed, facts in the text.
HEADERS: list[tuple[Callable[[dict[str, Any]], object], Any, Any, list[str]]] = [
    (move("first.weight", 4), "first.weight", CONTIGUOUS, [" 4 "]),
    (move("lm_head.weight", -4), "lm_head.weight", CONTIGUOUS, [" 4 ", "first.weight"]),
    (move("lm_head.weight", 4), "lm_head.weight", CONTIGUOUS, [" 4 ", "first.weight"]),
    (twice, "again", CONTIGUOUS, [" 5856 ", "lm_head.weight"]),
    (lambda header: header["first.weight"].update(shape=[-2, -2]), "first.weight", WHOLE, ["first.weight"]),
    (lambda header: header["lm_head.weight"].update(shape=["61", "24"]), "lm_head.weight", WHOLE, ["lm_head.weight"]),
    (lambda header: header["lm_head.weight"].update(dtype="F4"), "F4", tuple(BITS), ["lm_head.weight"]),
    (lambda header: header["lm_head.weight"].update(shape=[1, 2]), 5856, 8, ["lm_head.weight"]),
    (lambda header: header["lm_head.weight"].pop("shape"), None, COMPLETE, ["'shape'"]),
]


def with_a_head(directory: Path, source: Decoder, change: Callable[[dict[str, Any]], object]) -> Path:
    """A directory whose last file has the changed header. Returns that file."""
    written = checkpoint(directory, source)
    written.write()
    # The head comes last in the file, so that nothing else ends where it does.
    last = {"first.weight": torch.zeros(4), "lm_head.weight": written.tensors.pop("lm_head.weight").detach()}
    save_file(last, directory / "model-head.safetensors")
    save_file({name: t.detach().contiguous() for name, t in written.tensors.items()}, directory / "model.safetensors")
    edit_header(directory / "model-head.safetensors", change)
    return directory / "model-head.safetensors"


@pytest.mark.parametrize(("change", "value", "allowed", "facts"), HEADERS)
def test_a_damaged_header_is_reported(tmp_path, source, change, value, allowed, facts):
    file = with_a_head(tmp_path, source, change)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(tmp_path)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (str(file), value, allowed)
    (line,) = refused.value.lines
    assert str(file) in line
    assert all(fact in line for fact in facts)


def test_a_file_longer_than_its_header_describes_is_reported(tmp_path, source):
    file = with_a_head(tmp_path, source, lambda header: header.pop("lm_head.weight"))
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(tmp_path)
    size = file.stat().st_size
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (str(file), size, size - 5856)


def test_an_index_must_agree_with_the_files(tmp_path, source):
    directory = checkpoint(tmp_path, source).write(shards=2)
    index = directory / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    other = next(file for file in files.values() if file != files["lm_head.weight"])
    for text, where, value in (
        (json.dumps({"weight_map": files | {"lm_head.weight": other}}), directory / other, "lm_head.weight"),
        ("{}", index, None),
        (json.dumps({"weight_map": {"lm_head.weight": 3}}), index, None),
    ):
        index.write_text(text)
        with pytest.raises(HuggingFaceError) as refused:
            from_huggingface(directory)
        assert (refused.value.where, refused.value.value) == (str(where), value)
        assert refused.value.allowed
    index.unlink()
    again = directory / "model-again.safetensors"
    save_file({"lm_head.weight": torch.zeros(2)}, again)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(directory)
    assert refused.value.value == "lm_head.weight"
    assert refused.value.allowed == "a tensor in one file only"
    assert refused.value.where == str(again)


def test_missing_and_damaged_files_are_named(tmp_path, source):
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(tmp_path)
    assert (refused.value.where, refused.value.allowed) == (str(tmp_path), "a model directory")
    directory = checkpoint(tmp_path, source).write(shards=3)
    shard = directory / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b""):
        shard.write_bytes(damaged)
        with pytest.raises(HuggingFaceError) as refused:
            from_huggingface(directory)
        assert (refused.value.where, refused.value.value) == (str(shard), len(damaged))
        assert refused.value.allowed
    shard.unlink()
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(directory)
    assert (refused.value.where, refused.value.allowed) == (
        str(shard), "all files that model.safetensors.index.json lists"
    )  # fmt: skip
    for file in directory.glob("model*"):
        file.unlink()
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(directory)
    assert (refused.value.where, refused.value.allowed) == (
        str(directory), ("model.safetensors", "model.safetensors.index.json")
    )  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_json_is_named(tmp_path, source, file, text):
    directory = checkpoint(tmp_path, source).write(shards=2)
    (directory / file).write_text(text)
    with pytest.raises(HuggingFaceError) as refused:
        from_huggingface(directory)
    assert (refused.value.where, refused.value.allowed) == (str(directory / file), "a JSON object")


def test_the_checkpoint_stays_as_it_was(tmp_path, source):
    """The parameters are copies: training what was read must not write through to the files."""
    directory = checkpoint(tmp_path, source).write()
    model = from_huggingface(directory)
    with torch.no_grad():
        model.embed.zero_()
    kept = load_file(directory / "model.safetensors")["model.language_model.embed_tokens.weight"]
    assert torch.equal(kept, source.embed)
