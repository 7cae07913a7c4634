"""InternViT, the vision tower of Intern-S1, with its pixel shuffle and projector.

Sources: the published code of Intern-S1; InternVL 1.5 (arXiv 2404.16821) for tiles and pixel shuffle, InternViT-6B
(arXiv 2312.14238) for q/k norm and layer scale.

Legend: N tiles · R patches a side of a tile · S = 1 + R^2 tokens, the class token first · W width · h heads ·
d head dimension · m merge · H hidden size of the text model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.model import InternViTConfig
from trainer.model.numerics import rms_norm
from trainer.model.towers.parts import PatchEmbedding, in_blocks
from trainer.model.towers.projector import Projector

QK_EPS = 1e-6  # of the norms of queries and keys, whatever the others' is


class InternViTAttention(nn.Module):
    """Attention over the tokens of a tile; RMSNorm of queries and keys over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Parameter(torch.empty(3 * width, width))
        self.q_norm = nn.Parameter(torch.empty(width))
        self.k_norm = nn.Parameter(torch.empty(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, S, W] -> [N, S, W]."""
        q, k, v = F.linear(x, self.qkv).chunk(3, dim=-1)
        q, k = rms_norm(q, self.q_norm, QK_EPS), rms_norm(k, self.k_norm, QK_EPS)
        q_NhSd, k_NhSd, v_NhSd = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q_NhSd, k_NhSd, v_NhSd).transpose(1, 2).flatten(2))


class InternViTLayer(nn.Module):
    """Pre-norm layer: attention, then an MLP, each scaled channel by channel, around a residual."""

    def __init__(self, cfg: InternViTConfig) -> None:
        super().__init__()
        self.eps = cfg.norm_eps
        self.attention_norm = nn.Parameter(torch.empty(cfg.width))
        self.attention = InternViTAttention(cfg.width, cfg.num_heads)
        self.attention_scale = nn.Parameter(torch.empty(cfg.width))
        self.mlp_norm = nn.Parameter(torch.empty(cfg.width))
        self.up = nn.Linear(cfg.width, cfg.mlp_width)
        self.down = nn.Linear(cfg.mlp_width, cfg.width)
        self.mlp_scale = nn.Parameter(torch.empty(cfg.width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, S, W] -> [N, S, W]."""
        x = x + self.attention_scale * self.attention(rms_norm(x, self.attention_norm, self.eps))
        return x + self.mlp_scale * self.down(F.gelu(self.up(rms_norm(x, self.mlp_norm, self.eps))))


class InternViT(nn.Module):
    """Square tiles of one size -> embeddings of the text model."""

    def __init__(self, cfg: InternViTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embedding = PatchEmbedding(cfg.width, cfg.channels, cfg.patch_size, cfg.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, cfg.width))
        self.position_table = nn.Parameter(torch.empty(1, 1 + cfg.side**2, cfg.width))
        self.layers = nn.ModuleList([InternViTLayer(cfg) for _ in range(cfg.num_layers)])
        self.projector = Projector(cfg.merge**2 * cfg.width, cfg.out_width)

    def forward(self, tiles: Tensor) -> Tensor:
        """Embeddings of all tiles, one after another, each row by row.

        Args: tiles: [N, channels, tile_size, tile_size], normalised.
        Returns: [N * (R / m)^2, H].
        Raises: ValueError for tiles of another size.
        """
        cfg, (R, P) = self.cfg, (self.cfg.side, self.cfg.patch_size)
        takes = [cfg.channels, cfg.tile_size, cfg.tile_size]
        if list(tiles.shape[1:]) != takes:
            raise ValueError(f"tiles of shape {list(tiles.shape)}; this tower takes {takes} for each")
        patches_NRRCPP = tiles.unflatten(-1, (R, P)).unflatten(-3, (R, P)).permute(0, 2, 4, 1, 3, 5)
        x = self.patch_embedding(patches_NRRCPP.flatten(3).flatten(1, 2))
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position_table
        for layer in self.layers:
            x = layer(x)
        # The pixel shuffle: the m x m patches of a block side by side, without the class token.
        merged = in_blocks(x[:, 1:].unflatten(1, (R, R)), cfg.merge).flatten(0, 1).view(-1, cfg.merge**2 * cfg.width)
        return self.projector(merged)
