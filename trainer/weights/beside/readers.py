"""Programs that can read a directory, judged by its config.json, tensor names and files, without running any of them.

Each rule is what the program's own source asks for; docs/checkpoints.md says where. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.weights.beside.remote_code import reads_with_code

TRANSFORMERS = "transformers"
# Programs that choose a class by `architectures`, and read the configuration through transformers.
SERVING = ("vLLM", "SGLang", "LMDeploy")
# Another name that LMDeploy takes for the same class.
ALIASES = {"InternS1ProForConditionalGeneration": ("InternS1_1_ForConditionalGeneration",)}
BLOCK = 128  # rows and columns that share a scale in FP8
QWEN3 = "Qwen3MoeForCausalLM"
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


@dataclass(frozen=True)
class Reader:
    """A program, whether it can read the directory, and why."""

    program: str
    reads: bool
    why: str

    @property
    def line(self) -> str:
        return f"{self.program}: {'yes' if self.reads else 'no'}, {self.why}"


def readers(
    config: Mapping[str, Any], names: Collection[str], files: Collection[str], *, upright: bool = False
) -> list[Reader]:
    """The programs that are known here and what they make of a directory. Empty for another kind of model.

    names: of its tensors. files: of its side files. upright: experts that are stacked are
    [experts, 2 x width, hidden], as transformers 5 has them.
    """
    kind = config.get("model_type")
    if kind == "qwen3_moe" and not config.get("text_config"):
        return list(_of_qwen3_moe(config, names, upright))
    if kind in MULTIMODAL:
        return list(_of_a_multimodal_model(str(kind), config, files))
    return []


def _of_qwen3_moe(config: Mapping[str, Any], names: Collection[str], upright: bool) -> Iterator[Reader]:
    stacked = any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    prefixed = any(name.startswith(("model.language_model.", "language_model.")) for name in names)
    architectures = config.get("architectures") or []
    problem = None
    if prefixed:
        problem = f"the tensors have another prefix than {QWEN3}'s model."
    elif stacked:
        problem = f"the experts are stacked, and {QWEN3} has them one by one"
    widths = ("hidden_size", "moe_intermediate_size") if config.get("quantization_config") else ()
    odd = " and ".join(key for key in widths if _odd(config, key))
    wrong = f"{odd} is not a multiple of {BLOCK}, and in FP8 it then dequantizes to other weights" if odd else None
    if prefixed or not upright:
        wrong = problem or wrong
    yield Reader(TRANSFORMERS, not wrong, wrong or f"{'5' if stacked else '4.51'} or newer, as {QWEN3}")
    listed = None if QWEN3 in architectures else f"architectures does not list {QWEN3}"
    for program in SERVING:
        why = problem or listed
        yield Reader(program, not why, why or f"as {QWEN3}")
    yield Reader("Megatron-Bridge", not problem, problem or "as qwen3_moe")
    quantised = "it is in FP8, which was not tried" if config.get("quantization_config") else None
    for program, keys in ASKED.items():
        missing = [key for key in keys if config.get(key) is None]
        why = problem or (f"config.json lacks {', '.join(missing)}" if missing else quantised)
        yield Reader(program, not why, why or "as qwen3_moe")


def _of_a_multimodal_model(kind: str, config: Mapping[str, Any], files: Collection[str]) -> Iterator[Reader]:
    model, configuration = reads_with_code(config, files)
    own = f"transformers itself has no class for model_type {kind}"
    if model is not None and configuration is not None:
        yield Reader(TRANSFORMERS, True, f"with trust_remote_code=True: {own}, {model} has it")
    else:
        need = f"trust_remote_code with a modelling file, which auto_map in config.json would name, is needed: {own}"
        yield Reader(TRANSFORMERS, False, need)
    architecture, listed = MULTIMODAL[kind], config.get("architectures") or []
    why = None
    if not {architecture, *ALIASES.get(architecture, ())} & {*listed}:
        why = f"architectures does not list {architecture}"
    elif not config.get("vision_config"):
        why = f"its {architecture} asks for a vision_config, and this is the text model alone"
    elif configuration is None:
        why = f"it has {architecture}, but reads config.json by a file that auto_map would name (AutoConfig)"
    for program in SERVING:
        yield Reader(program, not why, why or f"as {architecture}, with trust_remote_code")
    for program in ("Megatron-Bridge", *ASKED):
        yield Reader(program, False, f"it has no model_type {kind}")


def _odd(config: Mapping[str, Any], key: str) -> bool:
    """True for a width that is not divided into whole blocks of FP8."""
    return type(config.get(key)) is int and config[key] % BLOCK != 0
