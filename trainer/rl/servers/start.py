"""Commands that start rollout servers so that they compute as training does.

python -m trainer.rl.servers DIR [--experts bf16|fp8] [--tp N] [--port N] [--executor mp|ray]

prints the command for LMDeploy. It needs neither torch nor LMDeploy.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any, Literal

Experts = Literal["bf16", "fp8"]


def lmdeploy_command(
    directory: str, *, experts: Experts = "bf16", tp: int = 1, port: int = 23333, executor: str = "mp"
) -> list[str]:
    """The command for LMDeploy 0.18 with the PyTorch engine.

    directory: with weights in bf16, which the server turns into FP8 itself, as it does with those of every sync.
    executor: "ray" for more than one machine; its routes are then read from a store in the same Ray cluster.
    """
    command = ["lmdeploy", "serve", "api_server", directory, "--backend", "pytorch", "--dtype", "bfloat16"]
    command += ["--server-port", str(port), "--tp", str(tp), "--distributed-executor-backend", executor]
    command += ["--logprobs-mode", "raw_logprobs", "--enable-return-routed-experts", "--enable-abort-handling"]
    command += ["--generation-config", "lmdeploy"]  # no defaults of the directory's own
    if experts == "fp8":
        command += ["--model-format", "fp8"]
    return [*command, "--hf-overrides", json.dumps(lmdeploy_overrides(experts))]


def lmdeploy_overrides(experts: Experts) -> dict[str, Any]:
    """Overrides of config.json: the LM head in fp32, and FP8 for the experts alone, with power-of-two scales.

    `fp8_quant_scope` takes the place of a list of all other matrices."""
    found: dict[str, Any] = {"fp32_lm_head": True}
    if experts == "fp8":
        found["quantization_config"] = {"fp8_quant_scope": "moe_only", "scale_fmt": "ue8m0"}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.rl.servers", description="Print the command for LMDeploy.")
    parser.add_argument("directory", help="a Hugging Face directory in bf16")
    parser.add_argument("--experts", choices=("bf16", "fp8"), default="bf16", help="as the recipe's precision")
    parser.add_argument("--tp", type=int, default=1, help="GPUs")
    parser.add_argument("--port", type=int, default=23333)
    parser.add_argument("--executor", choices=("mp", "ray"), default="mp", help="ray: for several machines")
    asked = parser.parse_args(arguments)
    command = lmdeploy_command(
        asked.directory, experts=asked.experts, tp=asked.tp, port=asked.port, executor=asked.executor
    )
    print(shlex.join(command))
