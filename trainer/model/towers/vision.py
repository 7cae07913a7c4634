"""The native-resolution vision tower of Intern-S1-Pro.

Sources: the published code of Intern-S1-Pro; Qwen3-VL (arXiv 2511.21631), whose tower it is without deepstack.

Legend: T patches of all images · W width · h heads · d head dimension · m merge · H hidden size of the text model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.model import VisionConfig
from trainer.model.numerics import rotary, wide
from trainer.model.towers.parts import PatchEmbedding, full_attention, in_blocks

EPS = 1e-6  # of the layer norms
THETA = 10_000.0  # of the rotary embedding
MEAN = STD = 0.5  # of pixels between 0 and 1, as published


class Images(NamedTuple):
    """Images cut into patches, one after another.

    pixels: [T, C * frames * P * P], normalised; or uint8 [T, C, P * P], an eighth of the bytes, which the tower
    normalises. In an image, patches are block by block of m x m (`in_blocks`).
    grids: rows and columns of patches of each image, multiples of m.
    """

    pixels: Tensor
    grids: Sequence[tuple[int, int]]


def normalised(pixels: Tensor, frames: int) -> Tensor:
    """[T, C, P * P] uint8 -> [T, C * frames * P * P] fp32: bit for bit what `PatchRule.prepare` makes."""
    x = pixels.float()
    x = ((x / x.new_full((), 255)) - MEAN) / STD  # by a number, CUDA would multiply with its rounded reciprocal
    return x.unsqueeze(2).expand(-1, -1, frames, -1).flatten(1)


class VisionAttention(nn.Module):
    """Attention inside each image; queries and keys are rotated by their patch's row and column."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        """x: [T, W]; cos, sin: [T, 1, 1, d/2] -> [T, W]."""
        qkv_T3hd = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k = rotary(qkv_T3hd[:, :2], cos, sin).unbind(1)
        return self.out(full_attention(q, k, qkv_T3hd[:, 2], lengths).flatten(1))


class VisionBlock(nn.Module):
    """Pre-norm block: attention, then an MLP with the tanh form of GELU, each around a residual."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(cfg.width, EPS)
        self.attention = VisionAttention(cfg.width, cfg.num_heads)
        self.mlp_norm = nn.LayerNorm(cfg.width, EPS)
        self.up = nn.Linear(cfg.width, cfg.mlp_width)
        self.down = nn.Linear(cfg.mlp_width, cfg.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]) -> Tensor:
        """x: [T, W]; cos, sin: [T, 1, 1, d/2]; lengths: patches of each image -> [T, W]."""
        x = x + self.attention(self.attention_norm(x), cos, sin, lengths)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Merger(nn.Module):
    """The m x m patches of a block -> one embedding of the text model."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        merged = cfg.merge**2 * cfg.width
        self.norm = nn.LayerNorm(cfg.width, EPS)
        self.up = nn.Linear(merged, merged)
        self.down = nn.Linear(merged, cfg.out_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [T, W], block by block -> [T / m^2, H]."""
        return self.down(F.gelu(self.up(self.norm(x).view(-1, self.up.in_features))))


class VisionTower(nn.Module):
    """Images of any size in whole patches -> embeddings of the text model."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch = PatchEmbedding(cfg.width, cfg.channels, cfg.frames, cfg.patch_size, cfg.patch_size)
        self.positions = nn.Parameter(torch.empty(cfg.position_side**2, cfg.width))
        self.blocks = nn.ModuleList([VisionBlock(cfg) for _ in range(cfg.num_layers)])
        self.merger = Merger(cfg)

    def forward(self, images: Images) -> Tensor:
        """Embeddings of all images, one after another, each row by row: [T / m^2, H].

        Raises: ValueError for a grid that is not a multiple of m, grids that do not add up to the patches, or pixels
            that are integers or of another patch size.
        """
        lengths = self._lengths(images)
        grids = [(int(rows), int(columns)) for rows, columns in images.grids]  # they may be rows of a tensor
        pixels = images.pixels
        x = self.patch(normalised(pixels, self.cfg.frames) if pixels.dtype == torch.uint8 else pixels)
        x = x + torch.cat([self._table(grid) for grid in grids]).to(x.dtype)
        cos, sin = self._rotary(grids, x)
        for block in self.blocks:
            x = block(x, cos, sin, lengths)
        return self.merger(x)

    def _lengths(self, images: Images) -> list[int]:
        width = self.cfg.channels * self.cfg.frames * self.cfg.patch_size**2
        bytes_of_patch = (torch.uint8, (self.cfg.channels, self.cfg.patch_size**2))
        kind, shape = images.pixels.dtype, tuple(images.pixels.shape[1:])
        if (kind, shape) != bytes_of_patch and not (kind.is_floating_point and shape == (width,)):
            found = f"{images.pixels.dtype} of shape {list(images.pixels.shape)}"
            raise ValueError(
                f"pixels are {found}; this tower takes normalised floats, [patches, {width}], or uint8, "
                f"{['patches', *bytes_of_patch[1]]}"
            )
        if any(len(grid) != 2 for grid in images.grids):
            raise ValueError("a grid is not two numbers; use (rows, columns) of patches for each image")
        lengths = [int(rows * columns) for rows, columns in images.grids]
        for rows, columns in images.grids:
            if min(rows, columns) < 1 or rows % self.cfg.merge or columns % self.cfg.merge:
                raise ValueError(
                    f"a grid of {rows} x {columns} patches; use rows and columns that {self.cfg.merge} divides"
                )
        if sum(lengths) != len(images.pixels):
            raise ValueError(f"the grids have {sum(lengths)} patches, but there are pixels of {len(images.pixels)}")
        return lengths

    def _table(self, grid: tuple[int, int]) -> Tensor:
        """The position table stretched over a grid, corner on corner, in fp32: [rows * columns, W], block by block."""
        side = self.cfg.position_side
        table_WSS = self.positions.to(wide(self.positions.dtype)).view(side, side, -1).permute(2, 0, 1)
        (found_Wrc,) = F.interpolate(table_WSS[None], size=grid, mode="bilinear", align_corners=True)
        return in_blocks(found_Wrc.permute(1, 2, 0), self.cfg.merge)

    def _rotary(self, grids: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, 1, d/2]: the first half of the angles turns with the row, the other with the column."""
        quarter = self.cfg.width // self.cfg.num_heads // 4
        dtype = wide(like.dtype)
        frequencies = THETA ** -(torch.arange(quarter, dtype=dtype, device=like.device) / quarter)
        places = [
            in_blocks(
                torch.cartesian_prod(*(torch.arange(size, device=like.device) for size in grid)).view(*grid, 2),
                self.cfg.merge,
            )
            for grid in grids
        ]
        angles = (torch.cat(places)[:, :, None] * frequencies).flatten(1)[:, None, None]
        return angles.cos(), angles.sin()
