from trainer.mixture import BLOCK, quotas


def test_quotas_are_exact_and_sum_to_the_block() -> None:
    assert quotas([1, 1, 2]) == [256, 256, 512]
    assert sorted(quotas([1, 1, 1]), reverse=True) == quotas([1, 1, 1]) == [342, 341, 341]
    assert sum(quotas([0.37, 1.91, 3.3, 0.02])) == BLOCK
