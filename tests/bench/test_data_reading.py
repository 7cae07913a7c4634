"""The arms of the bench read the same; its times are not looked at."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.bench.data_reading import SEQ_LEN, agree, arms, write_source
from trainer.data.shards import Shards


@pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="megatron-core has no wheel for this platform")
def test_all_arms_give_the_same_tokens_and_boundaries(tmp_path: Path) -> None:
    write_source(tmp_path, 100_000)
    order = np.random.default_rng(1).permutation(Shards(tmp_path).num_windows(SEQ_LEN))
    agree(arms(tmp_path, order), np.arange(len(order)))
