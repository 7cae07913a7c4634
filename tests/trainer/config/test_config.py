"""The schema: counts of the model's sizes, what `validate` finds, what the hash depends on."""

import re
from dataclasses import replace

import pytest

from tests.trainer.config.small_config import SMALL, assert_one_fault, config, with_key
from trainer.config import coerce
from trainer.config.checks.optim import doubtful
from trainer.config.checks.parallel import fp8_sizes
from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.config.checks.ranges import NOT_NEGATIVE, POSITIVE
from trainer.config.checks.validate import validate
from trainer.config.compose import compose, list_groups
from trainer.config.keys import Config, OptimConfig, TrainConfig, config_hash


def test_num_params_by_hand():
    attention = 8 * 24 + 8 * 12 + 8 * 12 + 24 * 8 + 6 + 6  # q, k, v, o, the norms of queries and keys
    layer = attention + 8 + 8 + 4 * 8 + 4 * (3 * 8 * 5)  # two norms, router, experts
    assert SMALL.num_params() == 11 * 8 + 3 * layer + 8 + 11 * 8
    assert SMALL.active_params() == SMALL.num_params() - 3 * 2 * (3 * 8 * 5)


def test_flops_per_token_by_hand():
    matrices = 3 * (8 * 24 + 8 * 12 + 8 * 12 + 24 * 8 + 4 * 8 + 2 * 3 * 8 * 5) + 11 * 8
    # token t attends to t + 1 tokens: 4 heads x 6 channels, 2 products, 2 FLOPs each, backward twice the forward
    attention = 3 * sum(4 * 6 * (t + 1) * 4 * 3 for t in range(7)) / 7
    assert SMALL.flops_per_token(7) == pytest.approx(6 * matrices + attention, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [
        ("intern_s1_pro_text", 916_555_836_928, 22.36e9),
        ("intern_s1_text", 235_104_120_320, 22.20e9),
        ("qwen3_30b_a3b", 30_532_122_624, 3.35e9),
        ("grouped_30b_a3b", 117_542_959_104, 3.39e9),
    ],
)
def test_sizes_of_published_models(model, total, active):
    cfg = compose(["recipe=toy", f"model={model}"])
    assert cfg.model.num_params() == total
    assert cfg.model.active_params() == pytest.approx(active, rel=2e-3)


def test_every_model_recipe_is_valid():
    for model in list_groups()["model"]:
        compose([f"recipe={'vision_contrastive_toy' if model.startswith('vision_') else 'toy'}", f"model={model}"])


def test_fope_keeps_45_of_64_frequencies_in_pro():
    assert compose(["recipe=toy", "model=intern_s1_pro"]).model.fope_frequencies() == 45


def test_the_small_configuration_is_valid():
    assert validate(config(), 1) == []


# changed keys, the key of the fault, what it offers
WRONG = [
    ({"data.holdout_fraction": -1e39}, "data.holdout_fraction", "between 0 and 1, such as 0.02"),
    ({"model.num_kv_heads": 3}, "model.num_kv_heads", (1, 2, 4)),
    ({"model.head_dim": 7}, "model.head_dim", (8,)),
    ({"model.router_groups": 3, "model.experts_per_token": 3}, "model.router_groups", (1,)),
    ({"model.router_groups": 4}, "model.router_groups", (1, 2)),
    ({"model.experts_per_token": 6}, "model.experts_per_token", "4 or less"),
    ({"model.hidden_size": 0}, "model.hidden_size", "1 or more"),
    ({"model.positions": "rop"}, "model.positions", ("rope", "fope")),
    ({"model.rope_theta": 1.0}, "model.rope_theta", "more than 1, such as 1e4"),
    ({"model.fope_pad_sin": 0.5}, "model.fope_pad_sin", (1, 0)),
    (
        {"model.positions": "fope", "model.max_position": 6, "data.seq_len": 4},
        "model.max_position",
        "7 or more, or model.positions=rope",
    ),
    ({"model.router_temperature": 0.0}, "model.router_temperature", "a number above 0"),
    ({"model.balance": "groups"}, "model.balance", ("group", "global")),
    ({"model.expert_backend": "looop"}, "model.expert_backend", ("grouped_mm", "loop")),
    ({"data.seq_len": 5000}, "data.seq_len", "4096 or less"),
    ({"data.seq_len": 0}, "data.seq_len", "1 or more"),
    ({"data.holdout_fraction": 1.0}, "data.holdout_fraction", "between 0 and 1, such as 0.02"),
    ({"data.cache_dir": " "}, "data.cache_dir", "a directory such as .cache/octavo"),
    ({"parallel.ep": -1}, "parallel.ep", "0 or more"),
    ({"parallel.dp_shard": -8}, "parallel.dp_shard", "0 or more"),
    ({"parallel.overlap": 0}, "parallel.overlap", "1 or more"),
    ({"parallel.overlap": 3}, "parallel.overlap", (1, 2, 4, 8, 16, 32)),
    ({"parallel.dispatch": "allgather"}, "parallel.dispatch", ("auto", "all_gather", "all_to_all")),
    ({"parallel.combine": "fixed"}, "parallel.combine", ("fixed_order", "reduce_scatter")),
    ({"parallel.timeout_s": -1.0}, "parallel.timeout_s", "a number above 0"),
    ({"precision.linears": "fp16"}, "precision.linears", ("fp32", "bf16")),
    ({"precision.router": "bf16"}, "precision.router", ("fp32",)),
    (
        {"precision.experts": "fp8"},
        "precision.experts",
        ("fp32", "bf16", "fp8_block", "fp8_current", "fp8_delayed", "mxfp8", "fp8_reference"),
    ),
    ({"precision.experts": "bf16"}, "precision.experts", ("fp32",)),
    (
        {"precision.linears": "bf16", "precision.experts": "fp8_reference", "model.expert_width": 8},
        "precision.payload",
        ("bf16", "fp8"),
    ),
    ({"precision.moments": "bf16", "optim.betas": [0.9, 0.999]}, "optim.betas", "0.95 or less"),
    ({"precision.experts": "fp8_reference", "model.expert_width": 6}, "model.expert_width", (4, 8)),
    ({"train.recompute": "experts", "train.compile": True}, "train.recompute", ("none", "selective", "full")),
    ({"precision.kept": "fp8", "train.recompute": "full"}, "precision.kept", ("exact",)),
    (
        {"precision.kept": "fp8", "precision.experts": "fp8_reference", "model.expert_width": 8},
        "train.recompute",
        ("full",),
    ),
    (
        {
            "train.offload_activations": True,
            "precision.experts": "fp8_block",
            "model.expert_width": 16,
            "model.hidden_size": 32,
        },
        "train.recompute",
        ("experts", "full"),
    ),
    ({"precision.experts": "mxfp8", "model.hidden_size": 16, "model.expert_width": 64}, "model.hidden_size", (32,)),
    ({"precision.moments": "bf16", "optim.betas": [0.99, 0.95]}, "optim.betas", "0.95 or less"),
    (
        {"precision.experts": "fp8_reference", "parallel.dp_shard": -1, "parallel.ep": 2},
        "parallel.dp_shard",
        "0 or more",
    ),
    ({"precision.moments": "bf16", "optim.name": "sgd"}, "precision.moments", ("fp32",)),
    ({"precision.moments": "bf16", "optim.engine": "deepspeed"}, "precision.moments", ("fp32",)),
    (
        {"precision.moments": "bf16", "optim.name": "muon", "optim.momentum": 0.98},
        "optim.momentum",
        "0.95 or less",
    ),
    (
        {"precision.moments": "bf16", "optim.name": "muon", "optim.betas": [0.9, 0.99]},
        "optim.betas",
        "0.95 or less",
    ),
    ({"optim.name": "muon", "optim.engine": "deepspeed"}, "optim.name", ("adamw",)),
    ({"optim.name": "muon", "optim.offload": "cpu"}, "optim.offload", ("none",)),
    ({"optim.name": "muon", "optim.momentum": 1.0}, "optim.momentum", "0 to below 1"),
    ({"optim.ns_steps": 0}, "optim.ns_steps", "1 or more"),
    ({"optim.ns_dtype": "fp16"}, "optim.ns_dtype", ("fp32", "bf16")),
    ({"optim.adamw_lr_ratio": 0.0}, "optim.adamw_lr_ratio", "a number above 0"),
    ({"optim.adjust_lr": "rms"}, "optim.adjust_lr", ("match_rms_adamw", "original")),
    ({"optim.name": "adam"}, "optim.name", ("adamw", "sgd", "muon")),
    ({"optim.lr": 0.0}, "optim.lr", "a number above 0"),
    ({"optim.lr": float("nan")}, "optim.lr", "a finite number"),
    ({"optim.betas": [0.9]}, "optim.betas", "two numbers from 0 to below 1"),
    ({"optim.betas": [0.9, 1.0]}, "optim.betas", "two numbers from 0 to below 1"),
    ({"optim.momentum": 1.0}, "optim.momentum", "0 to below 1"),
    ({"optim.clip_norm": -1.0}, "optim.clip_norm", "0 or more"),
    ({"optim.min_lr_ratio": 1.5}, "optim.min_lr_ratio", "0 to 1"),
    ({"optim.decay_fraction": -0.1}, "optim.decay_fraction", "0 to 1"),
    ({"optim.engine": "deepspeed", "optim.name": "sgd"}, "optim.name", ("adamw",)),
    ({"optim.engine": "deepspeed", "optim.zero_stage": 4}, "optim.zero_stage", (1, 2, 3)),
    (
        {"optim.engine": "deepspeed", "optim.offload": "cpu", "optim.offload_params": "cpu"},
        "optim.offload_params",
        ("none",),
    ),
    (
        {"optim.engine": "deepspeed", "optim.zero_stage": 3, "train.recompute": "selective"},
        "train.recompute",
        ("none", "full"),
    ),
    ({"optim.offload": "cpu", "optim.name": "sgd"}, "optim.offload", ("none",)),
    ({"optim.offload": "nvme", "optim.nvme_dir": "/nvme"}, "optim.offload", ("cpu", "none")),
    (
        {"optim.engine": "deepspeed", "optim.offload": "nvme", "optim.nvme_dir": "/nvme"},
        "optim.offload",
        ("cpu", "none"),
    ),
    ({"optim.offload": "nvme", "optim.nvme_dir": "/nvme", "optim.name": "sgd"}, "optim.offload", ("none",)),
    (
        {"optim.engine": "deepspeed", "optim.zero_stage": 3, "optim.offload": "nvme"},
        "optim.nvme_dir",
        "an existing directory on a local NVMe disk",
    ),
    ({"train.steps": 0}, "train.steps", "1 or more"),
    ({"train.seed": -1}, "train.seed", "0 or more"),
    ({"train.global_batch": 12}, "train.global_batch", (8, 16)),
    ({"train.recompute": "partial"}, "train.recompute", ("none", "selective", "attention", "experts", "full")),
    ({"train.device": "gpu"}, "train.device", ("auto", "cpu", "cuda")),
    ({"checkpoint.keep": 0}, "checkpoint.keep", "1 or more"),
    ({"logging.wandb": "on"}, "logging.wandb", ("off", "offline", "online")),
    ({"run.name": "a/b"}, "run.name", "letters, digits, '_', '-' and '.'"),
    ({"run.dir": ""}, "run.dir", "a directory, or null for runs/<name>-<hash>"),
]


@pytest.mark.parametrize(("changes", "where", "allowed"), WRONG, ids=lambda value: str(value)[:40])
def test_validate_names_the_key_and_what_would_work(changes, where, allowed):
    cfg = config()
    for key, value in changes.items():
        cfg = with_key(cfg, key, value)
    assert_one_fault(validate(cfg, 1), changes, where, allowed)


def test_validate_reports_everything_at_once():
    cfg = config()
    wrong = {"model.num_kv_heads": 3, "optim.lr": -1.0, "train.micro_batch": 3, "parallel.ep": 4, "train.device": "x"}
    for key, value in wrong.items():
        cfg = with_key(cfg, key, value)
    found = {"model.num_kv_heads", "optim.lr", "train.global_batch", "parallel.ep", "train.device"}
    faults = validate(cfg, 2)
    assert {fault.where for fault in faults} == found
    assert len(faults) == len(found)


def test_the_batch_must_divide_over_the_ranks():
    cfg = config(train=TrainConfig(global_batch=8, micro_batch=4))
    assert validate(cfg, 2) == []
    (fault,) = validate(cfg, 4)
    assert (fault.where, fault.value, fault.allowed) == ("train.global_batch", 8, (16,))
    assert all(datum in fault.text for datum in ("4 x 4 = 16", "train.micro_batch=1 or 2"))


def test_sizes_that_no_fp8_gemm_takes():
    fits = replace(SMALL, hidden_size=64, expert_width=96)
    assert [fp8_sizes(recipe, fits, 1) for recipe in TRANSFORMER_ENGINE] == [[]] * 4
    hidden, width = fp8_sizes("fp8_block", replace(SMALL, hidden_size=8, expert_width=72), 3)
    assert (hidden.where, hidden.value, hidden.allowed) == ("model.hidden_size", 8, (16,))
    assert (width.where, width.value, width.allowed) == ("model.expert_width", 72, (48, 96))
    assert {"48", "16", "3", "72"} <= set(re.findall(r"\d+", width.text))
    (only,) = fp8_sizes("fp8_reference", replace(SMALL, hidden_size=8, expert_width=6), 1)
    assert only.where == "model.expert_width"


@pytest.mark.parametrize(("key", "value"), [("parallel.ep", 2), ("parallel.dp_shard", 2)])
def test_deepspeed_wants_whole_weights(key, value):
    cfg = config(optim=OptimConfig(engine="deepspeed"), train=TrainConfig(global_batch=8, micro_batch=4))
    cfg = with_key(cfg, "model.expert_width", 4)
    assert validate(cfg, 2) == []
    (fault,) = validate(with_key(cfg, key, value), 2)
    assert (fault.where, fault.value, fault.allowed) == (key, value, (1,))
    assert "optim.engine=native" in fault.text


@pytest.mark.parametrize("key", ["run.dir", "checkpoint.init_from", "data.root", "data.cache_dir", "optim.nvme_dir"])
def test_a_directory_that_only_a_shell_could_find(key):
    for path in ("~", "~/disk", "~someone/disk", "$HOME/disk", "/mnt/$USER/disk"):
        (fault,) = validate(with_key(config(), key, path), 1)
        assert (fault.where, fault.value) == (key, path)
    for path in ("./~", "a~/b", "/mnt/~/disk", "cost$/b", "disk"):
        assert validate(with_key(config(), key, path), 1) == []
    (fault,) = validate(with_key(config(), key, ""), 1)
    assert fault.where == key


def test_a_run_may_end_inside_its_warmup():
    assert validate(config(optim=OptimConfig(warmup_steps=10), train=TrainConfig(steps=3)), 1) == []


@pytest.mark.parametrize(
    ("steps", "changes", "named"),
    [
        (2, {"warmup_steps": 1000}, ["optim.warmup_steps=1000", "train.steps=2", "2e-06"]),
        (300, {"warmup_steps": 250}, ["optim.warmup_steps=250", "60 steps", "train.steps=300", "50"]),
        (300, {"warmup_steps": 10, "decay_fraction": 1.0}, ["optim.decay_fraction=1", "300 steps"]),
        (300, {"schedule": "cosine", "warmup_steps": 300}, ["optim.schedule=cosine", "train.steps=300"]),
        (300, {"schedule": "constant", "warmup_steps": 301}, ["optim.warmup_steps=301"]),
        (300, {"schedule": "constant", "warmup_steps": 300}, []),
        (300, {"warmup_steps": 240}, []),  # the decay has its 60 steps
        (12, {"warmup_steps": 10}, []),
        (300, {"warmup_steps": 300, "decay_fraction": 0.0}, []),
    ],
)
def test_spans_longer_than_the_run_are_doubtful_and_no_fault(steps, changes, named):
    """They may be right: the run can be continued with more steps, and these keys cannot change then."""
    lines = doubtful(OptimConfig(**changes), steps)
    assert len(lines) == bool(named)
    assert all(text in lines[0] for text in named)


@pytest.mark.parametrize(("recipe", "ranks"), [("toy", 1), ("cpt_6t", 512)])
def test_recipes_are_not_doubtful(recipe, ranks):
    cfg = compose([f"recipe={recipe}"], world_size=ranks)
    assert doubtful(cfg.optim, cfg.train.steps) == []


def test_every_number_of_the_schema_has_a_range():
    elsewhere = {"optim.momentum", "optim.decay_fraction", "optim.min_lr_ratio", "data.holdout_fraction"}
    elsewhere |= {"model.rope_theta", "model.fope_pad_sin", "optim.zero_stage", "lora.dropout"}
    elsewhere |= {"rl.alpha", "rl.beta", "rl.off_alpha", "rl.off_beta"}
    numbers = {key for key, hint in coerce.keys(Config).items() if hint in (int, float)}
    assert numbers == POSITIVE | NOT_NEGATIVE | elsewhere


def test_only_keys_that_define_the_result_enter_the_hash():
    changed = {
        "run.name": "other",
        "run.dir": "x",
        "train.steps": 7,
        "train.log_every": 3,
        "train.micro_batch": 4,
        "train.recompute": "full",
        "train.device": "cpu",
        "logging.console": "off",
        "parallel.timeout_s": 3.0,
        "checkpoint.keep": 5,
        "checkpoint.allow_identical_copies": True,
        "data.cache_dir": "y",
        "model.expert_backend": "loop",
    }
    for key, value in changed.items():
        assert config_hash(with_key(config(), key, value)) == config_hash(config()), key
    defining = {
        "model.router_gradient": "conventional",
        "model.init_std": 0.03,
        "data.seq_len": 8,
        "data.prefixes": {"code": ["# "]},
        "precision.moments": "bf16",
        "optim.lr": 2e-3,
        "train.seed": 1,
        "train.global_batch": 16,
    }
    for key, value in defining.items():
        assert config_hash(with_key(config(), key, value)) != config_hash(config()), key


def test_the_hash_is_canonical():
    one = with_key(config(), "data.prefixes", {"a": ["1"], "b": ["2"]})
    other = with_key(config(), "data.prefixes", {"b": ["2"], "a": ["1"]})
    assert config_hash(one) == config_hash(other)
