"""Keys of the policy objective that would leave nothing to train on."""

import pytest

from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.recipes.values import EXAMPLES

SERVER = ("rl.engine=lmdeploy", "rl.exact=false")


def faults(*words, world_size=1):
    try:
        compose(["recipe=rl_toy", *words], world_size=world_size)
    except ConfigError as error:
        return error.faults
    return ()


@pytest.mark.parametrize(
    ("words", "where", "value", "allowed"),
    [
        (["rl.clip_low=-0.2"], "rl.clip_low", -0.2, "0 to below 1"),
        (["rl.clip_low=1"], "rl.clip_low", 1.0, "0 to below 1"),
        (["rl.clip_high=-0.2"], "rl.clip_high", -0.2, "0 or more"),
        (["rl.dual_clip=0.9"], "rl.dual_clip", 0.9, "1 or more"),
        (["rl.veto_low=1"], "rl.veto_low", 1.0, "0 to below 1"),
        (["rl.veto_low=-1"], "rl.veto_low", -1.0, "0 to below 1"),
        (["rl.veto_high=1"], "rl.veto_high", 1.0, "above 1, such as 20"),
        (["rl.alpha=2", "rl.beta=1.5"], "rl.alpha", 2.0, "0 to below 1"),
        (["rl.alpha=5", "rl.beta=0.5"], "rl.alpha", 5.0, "0 to below 1"),
        (["rl.alpha=1"], "rl.alpha", 1.0, "0 to below 1"),
        (["rl.beta=1"], "rl.beta", 1.0, "above 1, to 1e+08"),
        (["rl.off_alpha=-0.1"], "rl.off_alpha", -0.1, "0 to below 1"),
        (["rl.off_beta=0.9"], "rl.off_beta", 0.9, "above 1, to 1e+08"),
        (["rl.kl_coef=-0.1"], "rl.kl_coef", -0.1, "0 or more"),
        (["rl.kl_estimator=k2"], "rl.kl_coef", 0, "a number above 0, such as 0.1"),
        (["rl.kl_reference=/model"], "rl.kl_coef", 0, "a number above 0, such as 0.1"),
        (["rl.group_size=1"], "rl.group_size", 1, "2 or more"),
        (["rl.group_size=0"], "rl.group_size", 0, "2 or more"),
        (["rl.max_tokens=113"], "rl.max_tokens", 113, "112 or less"),
        ([*SERVER, "rl.url=http://localhost:1/v1"], "rl.url", "http://localhost:1/v1", ("http://localhost:1",)),
        (["rl.placement=ray"], "rl.environment_workers", 0, "1 or more"),
        (["rl.rollout_workers=2"], "rl.rollout_workers", 2, (1,)),
        ([*SERVER, "rl.url=http://localhost:1", "rl.ray_gpus=1"], "rl.ray_gpus", 1.0, (0.0,)),
        (["rl.environment_workers=2", "rl.ray_cpus=2"], "rl.ray_cpus", 2.0, (1.0,)),
        (["rl.environment_workers=-1"], "rl.environment_workers", -1, "0 or more"),
        (["rl.engine=vllm"], "rl.engine", "vllm", ("embedded", "lmdeploy", "ray")),
        ([*SERVER, "rl.url=http://a/#x"], "rl.url", "http://a/#x", "an address such as http://localhost:23333"),
        ([*SERVER, "rl.url=http://a/x/v1/"], "rl.url", "http://a/x/v1/", ("http://a/x",)),
    ],
)
def test_what_leaves_nothing_is_refused_with_the_key_and_its_range(words, where, value, allowed):
    (fault,) = faults(*words)
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)
    assert where in fault.text


@pytest.mark.parametrize(
    "words",
    [
        ["rl.clip_low=0", "rl.clip_high=0", "rl.dual_clip=1", "rl.veto_low=0", "rl.veto_high=1.01"],
        ["rl.clip_low=0.2", "rl.clip_high=0.28", "rl.dual_clip=10", "rl.veto_low=0.1", "rl.veto_high=20"],
        ["rl.alpha=0", "rl.beta=1e8", "rl.max_tokens=112"],
        [*SERVER, "rl.url=http://localhost:1/v11"],
        ["rl.environment_workers=1", "rl.placement=ray", "rl.ray_cpus=0", "rl.ray_address=local"],
    ],
)
def test_ends_of_the_ranges_are_taken(words):
    assert not faults(*words)


@pytest.mark.parametrize("key", EXAMPLES)
def test_values_that_remedies_give_as_examples_are_taken(key):
    assert not faults(f"{key}={EXAMPLES[key]}")


@pytest.mark.parametrize(
    ("words", "where", "value", "allowed"),
    [
        (["parallel.cp=2", "rl.exact=true", "parallel.cp_kind=ring"], "parallel.cp_kind", "ring", ("ulysses",)),
        (["parallel.cp=2", "rl.exact=true", "model.num_kv_heads=1"], "parallel.cp", 2, (1,)),
    ],
)
def test_layouts_in_which_no_rank_has_all_keys_of_a_head_are_refused(words, where, value, allowed):
    (fault,) = faults(*words, world_size=2)
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)


def test_exact_arithmetic_is_not_compiled():
    (fault,) = faults("rl.exact=true", "train.compile=true")
    assert (fault.where, fault.value, fault.allowed) == ("train.compile", True, (False,))
    assert not faults("rl.exact=false", "train.compile=true")
