"""Block scaling against its formula in fp64 and a list of the numbers of e4m3, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.fp8 import dequantize_tiles, fake_quantize, quantize_tiles, scale_from_byte, scale_to_byte
from tests.parallel.fp8_formula import NUMBERS, expected_tiles

TILES = [(1, 128), (128, 1), (128, 128)]
SHAPES = [(256, 256), (3, 130), (130, 3), (129, 257), (1, 1), (128, 64), (0, 128), (128, 0), (2, 3, 131, 5)]


def assert_as_expected(x: Tensor, tile: tuple[int, int]) -> None:
    codes, scale = quantize_tiles(x, tile)
    assert (codes.dtype, scale.dtype, codes.shape) == (torch.float8_e4m3fn, torch.float32, x.shape)
    wanted_codes, wanted_scale, wanted = expected_tiles(x, tile)
    assert scale.shape == wanted_scale.shape
    assert np.array_equal(scale.double().numpy(), wanted_scale)
    found = codes.view(torch.uint8).numpy().astype(np.int64)
    nan = wanted_codes & 0x7F == 0x7F  # the sign of a NaN says nothing
    assert np.array_equal(found & 0x7F == 0x7F, nan)
    assert np.array_equal(found[~nan], wanted_codes[~nan])
    # What the codes mean, and the short cut to it
    values = dequantize_tiles(codes, scale, tile, torch.float32)
    assert np.array_equal(values.double().numpy(), wanted, equal_nan=True)
    assert np.array_equal(fake_quantize(x, tile).float().numpy(), values.to(x.dtype).float().numpy(), equal_nan=True)


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of very different sizes, tile by tile and inside of tiles."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    power = torch.randint(-30, 31, (*shape[:-2], shape[-2], 1), generator=generator)
    return torch.ldexp(x, power + torch.randint(-12, 1, shape, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_codes_and_scales_are_those_of_the_formula(tile, shape, dtype):
    assert_as_expected(random(shape, seed=len(shape) + shape[-1]).to(dtype), tile)


def test_every_tie_and_its_neighbours():
    """448 fixes the scale at 1, so that the value itself is rounded."""
    rising = NUMBERS[:127]
    ties = torch.from_numpy((rising[1:] + rising[:-1]) / 2).float()
    up, down = (torch.nextafter(ties, torch.tensor(end)) for end in (torch.inf, 0.0))
    numbers = torch.cat([ties, up, down, torch.from_numpy(rising).float()])
    numbers = torch.cat([numbers, -numbers, torch.tensor([448.0])])
    assert_as_expected(numbers.view(1, -1), (1, len(numbers)))


def test_the_largest_number_of_a_tile_at_the_edges_of_every_power_of_two():
    """All of fp32's exponents, subnormal numbers among them: 448 and 224 times a power of two, and their neighbours."""
    powers = 2.0 ** torch.arange(-149, 128, dtype=torch.float64).view(-1, 1)
    edges = (powers * torch.tensor([1.0, 1.75])).flatten().float()
    edges = torch.cat([edges, *(torch.nextafter(edges, torch.tensor(end)) for end in (torch.inf, 0.0))])
    edges = edges[edges.isfinite()]
    share = torch.tensor([1.0, -0.99, 0.51, 2.0**-6, 2.0**-10, -(2.0**-15), 2.0**-17, 0.0])
    x = edges.view(-1, 1) * share
    assert (x != 0).any(1).sum() > 1600
    assert_as_expected(x, (1, 128))
    codes, scale = quantize_tiles(x, (1, 128))
    assert scale.max() == 2.0**127  # where 448 / amax is more than fp32 holds
    assert (codes[x[:, 0] == 448.0].float()[:, 0] == 448.0).all()  # not 224, as a rounded 1 / 448 would have it


@pytest.mark.parametrize("odd", [0.0, -0.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_zeros_infinities_and_nan(tile, odd):
    x = torch.full((256, 256), odd)
    assert_as_expected(x, tile)
    x[:, ::2] = random((256, 128), seed=7)
    assert_as_expected(x, tile)
    codes, scale = quantize_tiles(torch.tensor([[odd, 1000.0, -3.0]]), (1, 128))
    if odd != 0:
        assert scale.item() == 1.0
        assert codes.float().tolist()[0][1:] == [448.0, -3.0]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_quantising_again_changes_no_value(tile):
    for seed in range(5):
        x = random((256, 384), seed)
        if seed == 4:
            x *= 2.0**-110  # down to where the scale stays at 2^127
        x[0, 0] = 449.0 * 2.0**-9  # a largest number that rounds down to 224
        once = fake_quantize(x, tile)
        assert torch.equal(fake_quantize(once, tile), once)
        assert torch.equal(fake_quantize(once.bfloat16(), tile).float(), once.bfloat16().float())


def test_values_are_exact_in_bf16():
    for tile in TILES:
        codes, scale = quantize_tiles(random((256, 256), seed=1), tile)
        exact = dequantize_tiles(codes, scale, tile, torch.float32)
        assert torch.equal(dequantize_tiles(codes, scale, tile, torch.bfloat16).float(), exact)


def test_a_scale_travels_as_one_byte():
    scales = (2.0 ** torch.arange(-120, 128, dtype=torch.float64)).float()
    byte = scale_to_byte(scales)
    assert byte.dtype == torch.uint8
    assert len(byte.unique()) == len(scales)
    assert torch.equal(scale_from_byte(byte), scales)


def test_not_contiguous_and_inputs_are_left_alone():
    x = random((256, 130), seed=2)
    before = x.clone()
    assert_as_expected(x.t(), (1, 128))
    assert_as_expected(x[::2, 1:], (128, 128))
    assert torch.equal(x, before)


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_gpu_computes_the_same_bits(tile):
    x = random((3, 257, 392), seed=6)
    x[0, 0, :5] = torch.tensor([448.0, math.inf, math.nan, 0.0, 2.0**-140])
    for given in (x, x * 2.0**-110, x.bfloat16()):
        codes, scale = quantize_tiles(given, tile)
        of_gpu, scale_of_gpu = quantize_tiles(given.cuda(), tile)
        nan = codes.float().isnan()  # the sign of a NaN says nothing
        assert torch.equal(of_gpu.cpu().view(torch.uint8)[~nan], codes.view(torch.uint8)[~nan])
        assert of_gpu.cpu().float()[nan].isnan().all()
        assert torch.equal(scale_of_gpu.cpu(), scale)
        values = dequantize_tiles(codes, scale, tile, given.dtype)
        for found in (dequantize_tiles(of_gpu, scale_of_gpu, tile, given.dtype), fake_quantize(given.cuda(), tile)):
            assert torch.equal(found.cpu().nan_to_num(7.0), values.nan_to_num(7.0))
