"""Commands that start rollout servers so that they compute as training does.

python -m trainer.rl.servers DIR [recipe=NAME KEY=VALUE ...] [--tp N] [--port N] [--executor mp|ray]

prints the command for LMDeploy, with what the recipe asks for: experts in FP8 or BF16, the length of a window, routes.
Without a recipe experts are in BF16, or as --experts says. It needs neither torch nor LMDeploy.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from trainer.config.checks.kinds.questions import served_precision
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.keys import Config

Experts = Literal["bf16", "fp8"]


def lmdeploy_command(
    directory: str,
    *,
    experts: Experts = "bf16",
    tp: int = 1,
    port: int = 23333,
    executor: str = "mp",
    session_len: int | None = None,
    routes: bool = True,
) -> list[str]:
    """The command for LMDeploy 0.18 with the PyTorch engine.

    directory: with weights in bf16, which the server turns into FP8 itself, as it does with those of every sync.
    executor: "ray" for more than one machine; its routes are then read from a store in the same Ray cluster.
    session_len: the most tokens of prompt and answer; None for what the model can take. routes: record experts.
    """
    command = ["lmdeploy", "serve", "api_server", directory, "--backend", "pytorch", "--dtype", "bfloat16"]
    command += ["--server-port", str(port), "--tp", str(tp), "--distributed-executor-backend", executor]
    command += ["--logprobs-mode", "raw_logprobs", "--enable-abort-handling"]
    command += ["--enable-return-routed-experts"] if routes else []
    command += ["--session-len", str(session_len)] if session_len is not None else []
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


def options_of(cfg: Config) -> dict[str, Any]:
    """The options of `lmdeploy_command` for a run. Raises ConfigError for what LMDeploy has no equal of."""
    if faults := [*served_precision(cfg)]:
        raise ConfigError(faults)
    return {
        "experts": "fp8" if cfg.precision.experts.startswith("fp8") else "bf16",
        "session_len": cfg.data.seq_len + 1,  # the last token of a rollout is not an input
        "routes": cfg.rl.replay != "off",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m trainer.rl.servers", description="Print the command for LMDeploy.")
    parser.add_argument("directory", help="a Hugging Face directory in bf16")
    parser.add_argument("overrides", nargs="*", metavar="override", help="recipe=NAME or KEY=VALUE of the run")
    parser.add_argument("--experts", choices=("bf16", "fp8"), help="without a recipe (default: bf16)")
    parser.add_argument("--tp", type=int, default=1, help="GPUs")
    parser.add_argument("--port", type=int, default=23333)
    parser.add_argument("--executor", choices=("mp", "ray"), default="mp", help="ray: for several machines")
    asked = parser.parse_args(arguments)
    options: dict[str, Any] = {"experts": asked.experts or "bf16"}
    if asked.overrides:
        if asked.experts is not None:
            parser.error("--experts is what the recipe's precision says; leave it out")
        try:
            options = options_of(compose(asked.overrides, world_size=None))
        except ConfigError as error:
            parser.exit(2, "".join(f"{line}\n" for line in error.lines))
    command = lmdeploy_command(asked.directory, tp=asked.tp, port=asked.port, executor=asked.executor, **options)
    print(shlex.join(command))
