"""A small valid configuration, changed key by key, for tests."""

from dataclasses import replace

from trainer.config.keys import Config, DataConfig
from trainer.config.model import ModelConfig

SMALL = ModelConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    num_experts=4,
    experts_per_token=2,
    router_groups=2,
    expert_width=5,
)


def config(**changed):
    return Config(model=SMALL, data=DataConfig(name="synthetic", seq_len=16), **changed)


def with_key(cfg, key, value):
    section, name = key.split(".")
    return replace(cfg, **{section: replace(getattr(cfg, section), **{name: value})})


def assert_one_fault(faults, changes, where, allowed):
    (fault,) = faults
    assert (fault.where, fault.allowed) == (where, allowed)
    value = changes.get(where, fault.value)
    assert fault.value == value or (fault.value != fault.value and value != value)  # NaN
    assert where in fault.text
    assert str(fault.value).split(".")[0].lower().strip("[]' ") in fault.text.lower()  # in whatever notation
    assert "\n" not in fault.text
