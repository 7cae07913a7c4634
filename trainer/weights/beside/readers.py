"""Programs that can read a directory, judged by its config.json, tensor names and files, without running any of them.

Each rule is what the program's own source asks for; docs/exports.md says where, and which programs tests run. No torch
here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.weights.beside.remote_code import FILES, reads_with_code
from trainer.weights.config_json.keys import GROUPED

OCTAVO, TRANSFORMERS, VLLM, LMDEPLOY = "Octavo", "transformers", "vLLM", "LMDeploy"
# Programs that choose a class by `architectures`, and read the configuration through transformers.
SERVING = (VLLM, "SGLang", LMDEPLOY)
# Another name that LMDeploy takes for the same class.
ALIASES = {"InternS1ProForConditionalGeneration": ("InternS1_1_ForConditionalGeneration",)}
BLOCK = 128  # rows and columns that share a scale in FP8
QWEN3 = "Qwen3MoeForCausalLM"
TEXT_ALONE = 'limit_mm_per_prompt={"image": 0, "video": 0}'  # vLLM's argument
MULTIMODAL = {
    "interns1": "InternS1ForConditionalGeneration", "interns1_pro": "InternS1ProForConditionalGeneration",
    "interns1_1": "InternS1ProForConditionalGeneration",
}  # fmt: skip
# Keys without a default in the program's own configuration of qwen3_moe.
ASKED = {
    "mlx-lm": (
        "decoder_sparse_step", "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings",
        "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_attention_heads", "num_experts",
        "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta",
        "tie_word_embeddings", "vocab_size",
    ),
    "mistral.rs": (
        "decoder_sparse_step", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings",
        "max_window_layers", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_attention_heads",
        "num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta",
        "use_sliding_window", "vocab_size",
    ),
}  # fmt: skip

MLX_ON_CPUS = "; on a CPU in FP32 alone"
# What tests/trainer/weights runs: on exports of the model type.
TESTED = {
    (TRANSFORMERS, "qwen3_moe"): "5.23", (TRANSFORMERS, "interns1_pro"): "5.23",
    (VLLM, "qwen3_moe"): "0.32", (VLLM, "interns1_pro"): "0.32 and one line of 0.33",
    (LMDEPLOY, "interns1_pro"): "0.18, keys and tensors alone",
    ("mlx-lm", "qwen3_moe"): "0.32", ("mistral.rs", "qwen3_moe"): "0.9",
}  # fmt: skip
# Sizes of the signal tower that LMDeploy has fixed, as keys of ts_config: the first at 80, the others absent.
BINS, FIXED = 80, ("patch_width", "patch_heads", "patch_mlp_width", "patch_positions")


@dataclass(frozen=True)
class Reader:
    """A program, whether it can read the directory, and why. tested: what Octavo's tests run, where it can."""

    program: str
    reads: bool
    why: str
    tested: str = ""

    @property
    def line(self) -> str:
        return f"{self.program}: {'yes' if self.reads else 'no'}, {self.why}" + (f" ({self.tested})" * self.reads)


def readers(
    config: Mapping[str, Any], names: Collection[str], files: Collection[str], *, upright: bool = False
) -> list[Reader]:
    """The programs that are known here and what they make of a directory. Empty for another kind of model.

    names: of its tensors. files: of its side files. upright: experts that are stacked are
    [experts, 2 x width, hidden], as transformers 5 has them.
    """
    kind = config.get("model_type")
    if kind == "qwen3_moe" and not config.get("text_config"):
        found = _of_qwen3_moe(config, names, upright)
    elif kind in MULTIMODAL:
        found = _of_a_multimodal_model(str(kind), config, files)
    else:
        return []
    quantised = bool(config.get("quantization_config"))
    tested = [replace(reader, tested=_tested(reader.program, str(kind), quantised)) for reader in found]
    return [Reader(OCTAVO, True, "to generate, to serve and to continue training", "tested"), *tested]


def _tested(program: str, kind: str, quantised: bool) -> str:
    version = TESTED.get((program, kind)) if program == TRANSFORMERS or not quantised else None
    return f"tested with {version}" if version else "by its source, not tested"


def _of_qwen3_moe(config: Mapping[str, Any], names: Collection[str], upright: bool) -> Iterator[Reader]:
    stacked = any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    prefixed = any(name.startswith(("model.language_model.", "language_model.")) for name in names)
    architectures = config.get("architectures") or []
    problem = None
    if prefixed:
        problem = f"the tensors have another prefix than {QWEN3}'s model."
    elif stacked:
        problem = f"the experts are stacked, and {QWEN3} has them one by one"
    misread, joined = _ragged(config)
    wrong = f"{misread}, which 5.23 misreads in FP8" if misread else None
    if prefixed or not upright:
        wrong = problem or wrong
    yield Reader(TRANSFORMERS, not wrong, wrong or f"{'5' if stacked else '4.51'} or newer, as {QWEN3}")
    refused = f"{joined}, which it needs of matrices that it joins in FP8" if joined else None
    listed = None if QWEN3 in architectures else f"architectures does not list {QWEN3}"
    for program in SERVING:
        why = problem or listed or refused
        yield Reader(program, not why, why or f"as {QWEN3}")
    yield Reader("Megatron-Bridge", not problem, problem or "as qwen3_moe")
    quantised = "it is in FP8, which was not tried" if config.get("quantization_config") else None
    for program, keys in ASKED.items():
        missing = [key for key in keys if config.get(key) is None]
        why = problem or (f"config.json lacks {', '.join(missing)}" if missing else quantised)
        yield Reader(program, not why, why or "as qwen3_moe" + (MLX_ON_CPUS if program == "mlx-lm" else ""))


def _of_a_multimodal_model(kind: str, config: Mapping[str, Any], files: Collection[str]) -> Iterator[Reader]:
    model, configuration = reads_with_code(config, files)
    own = f"transformers itself has no class for model_type {kind}"
    text = config.get("text_config") or {}
    misread, joined = _ragged(text, config)
    grouped = kind == "interns1" and text.get("model_type") == GROUPED
    no_groups = "the code for interns1 has no router groups and no FoPE" if grouped else None
    if no_groups:
        yield Reader(TRANSFORMERS, False, no_groups)
    elif model is None or configuration is None:
        need = f"trust_remote_code with a modelling file, which auto_map in config.json would name, is needed: {own}"
        yield Reader(TRANSFORMERS, False, need)
    elif misread:
        yield Reader(TRANSFORMERS, False, f"{misread}, which 5.23 misreads in FP8")
    else:
        towers = config.get("vision_config") or config.get("ts_config")
        alone = ", without the towers" if model in FILES and towers else ""
        yield Reader(TRANSFORMERS, True, f"with trust_remote_code=True: {own}, {model} has it{alone}")
    architecture, listed = MULTIMODAL[kind], config.get("architectures") or []
    why = None
    if no_groups:
        why = no_groups
    elif not {architecture, *ALIASES.get(architecture, ())} & {*listed}:
        why = f"architectures does not list {architecture}"
    elif not config.get("vision_config"):
        why = f"its {architecture} asks for a vision_config, and this is the text model alone"
    elif configuration is None:
        why = f"it has {architecture}, but reads config.json by a file that auto_map would name (AutoConfig)"
    elif joined:
        why = f"{joined}, which it needs of matrices that it joins in FP8"
    processor = "processor_config.json" in files or "AutoProcessor" in (config.get("auto_map") or {})
    for program in SERVING:
        wrong, note = why or _refusals(config, architecture).get(program), ""
        if not processor and program == VLLM:
            note = f" and {TEXT_ALONE}, as there is no processor of images"
        elif not processor:
            wrong = (
                wrong or "its model class reads it, but its server asks for a processor of images, and there is none"
            )
        yield Reader(program, not wrong, wrong or f"as {architecture}, with trust_remote_code{note}")
    for program in ("Megatron-Bridge", *ASKED):
        yield Reader(program, False, f"it has no model_type {kind}")


def _refusals(config: Mapping[str, Any], architecture: str) -> dict[str, str]:
    """Program -> why its class of Intern-S1-Pro cannot read a config.json that has what all of them ask for."""
    found = {}
    text, signals = config.get("text_config") or {}, config.get("ts_config") or {}
    positions = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if architecture == "InternS1ProForConditionalGeneration" and positions.get("fope_init_factor") is None:
        found[VLLM] = f"its {architecture} has FoPE alone, and this model has RoPE"
    if config.get("ts_config") and (signals.get("num_mel_bins") != BINS or any(key in signals for key in FIXED)):
        found[LMDEPLOY] = "the signal tower has other sizes than the published one's, which it has fixed"
    named = str((config.get("auto_map") or {}).get("AutoModelForCausalLM", architecture)).rpartition(".")[2]
    if named not in (architecture, *ALIASES.get(architecture, ())):
        found[LMDEPLOY] = f"it looks for {named}, which auto_map names, and not for {architecture}"
    return found


def _ragged(text: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """In FP8, clauses for the widths that transformers misreads and for those that programs which join matrices cannot
    read; empty where there are none. text: the text model's configuration; config: the whole, with the dtypes."""
    if not (config or text).get("quantization_config"):
        return "", ""
    sizes = {key: text[key] for key in ("hidden_size", "moe_intermediate_size") if type(text.get(key)) is int}
    for heads in ("num_attention_heads", "num_key_value_heads"):
        if type(text.get(heads)) is int and type(text.get("head_dim")) is int:
            sizes[f"{heads} x head_dim"] = text[heads] * text["head_dim"]
    odd = [key for key, size in sizes.items() if size % BLOCK]
    # A width below one block has one scale, which is right for all of it.
    lists = [[key for key in odd if sizes[key] > BLOCK], [key for key in odd if key != "hidden_size"]]
    misread, joined = (f"{' and '.join(keys)} is not a multiple of {BLOCK}" if keys else "" for keys in lists)
    return misread, joined
