"""Commands that start servers: LMDeploy's own parser accepts them, and its model has the dtypes that they ask for."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.printed import error_line
from tests.trainer.rl.servers.lmdeploy_process import environment, make_export
from tests.trainer.weights.peers.environments import require
from trainer.rl.servers.start import lmdeploy_command, main

SCRIPT = Path(__file__).parent / "inside" / "lmdeploy_config.py"


def test_the_printed_command_is_the_functions(capsys):
    main(["/models/x", "--experts", "fp8", "--tp", "8"])
    assert shlex.split(capsys.readouterr().out) == lmdeploy_command("/models/x", experts="fp8", tp=8)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), {"experts": "fp8", "session_len": 69_633}),
        (("precision=bf16", "rl.replay=off"), {"experts": "bf16", "session_len": 69_633, "routes": False}),
    ],
)
def test_a_recipe_sets_the_flags(words, options, capsys):
    main(["/models/x", "recipe=rl_intern_s1_pro", *words, "--tp", "16"])
    assert shlex.split(capsys.readouterr().out) == lmdeploy_command("/models/x", tp=16, **options)


def test_a_precision_that_lmdeploy_has_not_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["/models/x", "recipe=rl_intern_s1_pro", "precision=mxfp8"])
    assert ended.value.code == 2
    assert "precision.experts" in error_line(capsys.readouterr().err)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    require("lmdeploy")
    return make_export(tmp_path_factory.mktemp("model"))


def ask(directory: Path, **options: Any) -> dict[str, Any]:
    command = lmdeploy_command(str(directory), **options)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command], capture_output=True, text=True, env=environment(directory), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["bf16", "fp8"])
def test_experts_alone_are_in_fp8_and_the_head_in_fp32(exported, experts):
    found = ask(exported, experts=experts, tp=4)
    dtypes = found["dtypes"]
    assert dtypes.pop("lm_head.weight") == "torch.float32"
    of_experts = {dtype for name, dtype in dtypes.items() if ".experts." in name and "scale" not in name}
    assert of_experts == {"torch.float8_e4m3fn" if experts == "fp8" else "torch.bfloat16"}
    rest = {dtype for name, dtype in dtypes.items() if ".experts." not in name and "_scale" not in name}
    assert rest == {"torch.bfloat16"}
    scope = "moe_only" if experts == "fp8" else None
    assert found["nested"] == [scope, scope]
    assert found["scale_fmt"] == ("ue8m0" if experts == "fp8" else None)
    assert (found["logprobs_mode"], found["enable_return_routed_experts"], found["enable_abort_handling"]) == (
        "raw_logprobs", True, True,
    )  # fmt: skip
    assert (found["backend"], found["tp"], found["enable_prefix_caching"]) == ("pytorch", 4, False)
