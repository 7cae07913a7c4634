"""Noise: normal, of the std that is asked for, another for every copy, and the same whatever the circumstances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.weights.upcycle.errors import UpcycleError
from trainer.weights.upcycle.noise import POOL, RUN, Noise, root_mean_square, smallest_noise

NAMES = ["layers.0.a", "layers.0.b", "layers.0.c", "layers.0.d"]


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows of different sizes, as trained ones are."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.linspace(0.5, 2.0, rows).unsqueeze(1)
    return (values * 0.02).to(dtype)


def copies(noise: Noise, values: Tensor, dtype: torch.dtype | None = None, names: list[str] = NAMES) -> list[Tensor]:
    runs = [run.clone() for run in noise.copies(values, names, dtype or values.dtype, "w")]
    return list(torch.cat(runs).split(len(values)))


# The larger one draws from a pool that is scaled as a whole, in many runs; the smaller from parts of it.
@pytest.mark.parametrize(("rows", "columns"), [(1536, 768), (700, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_normal_and_uncorrelated_between_copies(rows, columns, dtype):
    values = matrix(rows, columns, dtype)
    before = values.clone()
    made = copies(Noise(1e-2, seed=3), values)
    assert torch.equal(values, before)
    assert (values.numel() * 4 > POOL) == (rows == 1536)
    rms = values.double().square().mean().sqrt()
    z = torch.stack([(copy.double() - values.double()).flatten() / (1e-2 * rms) for copy in made])
    count = z.shape[1]
    assert z.mean(1).abs().max() < 5 / count**0.5
    # bf16's rounding adds the mean of (distance of neighbouring numbers)^2 / 12: about 4 % of the variance here
    spread = (z.square().mean(1).sqrt() - 1).abs().max()
    assert spread < 5 / (2 * count) ** 0.5 + (0.03 if dtype == torch.bfloat16 else 0)
    correlation = torch.corrcoef(torch.cat([z, values.double().view(1, -1)])) - torch.eye(5)
    assert correlation.abs().max() < 5 / count**0.5
    runs = z[0, : RUN // columns * columns * 2].chunk(2)
    if len(z[0]) > 2 * RUN:  # one after the other in a copy
        assert torch.corrcoef(torch.stack(runs))[0, 1].abs() < 5 / RUN**0.5
    rowwise = torch.corrcoef(z[0].view(rows, columns)[:200]) - torch.eye(200)
    assert rowwise.abs().max() < 6 / columns**0.5
    if dtype == torch.float32:  # tails, too, are a normal distribution's
        for limit, share in ((1.0, 0.317311), (2.0, 0.045500), (3.0, 0.002700)):
            assert (z.abs() > limit).double().mean().item() == pytest.approx(share, rel=0.1)


def test_a_copy_depends_on_seed_and_name_alone():
    values = matrix(300, 200, torch.bfloat16)
    together = copies(Noise(1e-2, 3), values)
    alone = [copies(Noise(1e-2, 3), values, names=[name])[0] for name in reversed(NAMES)]
    assert all(torch.equal(a, b) for a, b in zip(together, reversed(alone), strict=True))
    assert not torch.equal(copies(Noise(1e-2, 4), values)[0], together[0])
    assert len({copy.float().sum().item() for copy in together}) == 4


def test_a_large_copy_depends_neither_on_what_is_made_with_it_nor_on_threads():
    """With three siblings the pool is scaled as a whole, alone in parts; threads cut sums and additions elsewhere."""
    values = matrix(1001, 701, torch.bfloat16)
    first = copies(Noise(1e-2, 3), values)[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(copies(Noise(1e-2, 3), values)[0], first)
        assert torch.equal(copies(Noise(1e-2, 3), values, names=NAMES[:1])[0], first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_rounded_once(stored, into):
    values = matrix(100, 64, stored)
    made = copies(Noise(1e-2, 0), values, into)[0]
    exact = copies(Noise(1e-2, 0), values.double(), torch.float64)[0]
    assert made.dtype == into
    error = (made.double() - exact).abs() / exact.abs().clamp_min(1e-3)
    own = 0.2 if stored == into == torch.bfloat16 else 0.01  # the noise itself is rounded to bf16, too
    assert error.max() <= (0.5 + own) * torch.finfo(into).eps


def test_without_noise_copies_are_exact_and_zeros_stay_zeros():
    values = matrix(30, 20, torch.bfloat16)
    assert all(torch.equal(copy, values) for copy in copies(Noise(0.0, 0), values))
    zeros = torch.zeros(30, 20, dtype=torch.bfloat16)
    assert all(torch.equal(copy, zeros) for copy in copies(Noise(1e-2, 0), zeros))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused(bad):
    values = matrix(30, 20)
    values[3, 4] = bad
    with pytest.raises(UpcycleError) as refused:
        copies(Noise(1e-2, 0), values)
    assert (refused.value.where, refused.value.allowed) == ("w", "finite numbers")
    assert not math.isfinite(refused.value.value)


def test_the_rms_of_a_large_matrix_is_taken_of_a_part_of_it_and_close():
    values = matrix(2000, 1000)
    assert root_mean_square(values.view(-1)) == pytest.approx(values.double().square().mean().sqrt().item(), rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_rounding_leaves_of_noise(dtype):
    """From `smallest_noise` on, most of the noise's std is there; a quarter of it is lost nearly all."""
    values = matrix(400, 400, dtype)

    def kept(relative: float) -> float:
        moved = copies(Noise(relative, 0), values)[0].double() - values.double()
        return (moved.norm() / values.double().norm() / relative).item()

    assert 0.9 < kept(smallest_noise(dtype)) < 1.1
    assert kept(8 * smallest_noise(dtype)) == pytest.approx(1, rel=0.02)
    assert kept(smallest_noise(dtype) / 8) < 0.8
