"""The sizes and options of the model and its towers, and the counts that follow from them. No torch here: commands
count, too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from trainer.config.coerce import FREE

Shape = tuple[int, ...]


@dataclass(kw_only=True)
class VisionConfig:
    """Intern-S1-Pro's vision tower, for images of any size in whole patches."""

    kind: Literal["native"] = "native"  # native: for images of any size, intern_vit: for square tiles
    width: int  # of the residual stream
    num_layers: int  # blocks of the tower
    num_heads: int  # divides width; for native into heads of a multiple of 4
    mlp_width: int  # inner width of the MLPs
    channels: int  # of the images
    frames: int  # native: images in a row that one patch covers; a still image is repeated
    patch_size: int  # pixels a side
    merge: int  # patches a side that become one token of the text model
    position_side: int  # native: rows, and columns, of the position table
    out_width: int  # hidden size of the text model

    @property
    def patch_values(self) -> int:
        """Numbers of a patch."""
        return self.channels * self.frames * self.patch_size**2

    def shapes(self) -> list[Shape]:
        """The shapes of the tower's parameters."""
        w = self.width
        patch: list[Shape] = [(w, self.channels, self.frames, self.patch_size, self.patch_size), (w,)]
        block = [*_norm(w), *_linear(w, 3 * w), *_linear(w, w), *_norm(w), *_mlp(w, self.mlp_width)]
        return [*patch, (self.position_side**2, w), *block * self.num_layers, *self.merger_shapes()]

    def merger_shapes(self) -> list[Shape]:
        """The last of `shapes`, those of the merger."""
        merged = self.merge**2 * self.width
        return [*_norm(self.width), *_linear(merged, merged), *_linear(merged, self.out_width)]

    def flops_per_token(self, image: int = 1024) -> float:
        """Model FLOPs, forward and backward, of one token of an image of `image` patches, which are m^2 to a token; as
        `ModelConfig.flops_per_token` counts them, with attention to all patches."""
        merged = self.merge**2 * self.width
        per_patch = self.num_layers * (4 * self.width**2 + 2 * self.width * self.mlp_width)
        per_patch += self.patch_values * self.width
        attention = 12.0 * self.num_layers * self.width * image
        return self.merge**2 * (6.0 * per_patch + attention) + 6.0 * (merged**2 + merged * self.out_width)


@dataclass(kw_only=True)
class InternViTConfig:
    """Intern-S1's vision tower, for square tiles of one size, and the projector behind it."""

    kind: Literal["intern_vit"] = "intern_vit"  # as of `VisionConfig`
    width: int  # of the residual stream
    num_layers: int  # blocks of the tower
    num_heads: int  # divides width; for native into heads of a multiple of 4
    mlp_width: int  # inner width of the MLPs
    channels: int  # of the images
    tile_size: int  # intern_vit: pixels a side of a tile
    patch_size: int  # pixels a side
    merge: int  # patches a side that become one token of the text model
    norm_eps: float = 1e-6  # intern_vit: added to the mean square in the RMSNorms before attention and MLP
    out_width: int  # hidden size of the text model

    @property
    def side(self) -> int:
        """Patches a side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of the text model that a tile becomes."""
        return (self.side // self.merge) ** 2

    def shapes(self) -> list[Shape]:
        """The shapes of the parameters of the tower and its projector."""
        w = self.width
        patch = [(1, 1, w), (1, 1 + self.side**2, w), (w, self.channels, self.patch_size, self.patch_size), (w,)]
        layer = [(w,), (3 * w, w), (w,), (w,), *_linear(w, w), (w,), (w,), *_mlp(w, self.mlp_width), (w,)]
        return [*patch, *layer * self.num_layers, *self.merger_shapes()]

    def merger_shapes(self) -> list[Shape]:
        """The last of `shapes`, those of the projector."""
        return _projector(self.merge**2 * self.width, self.out_width)

    def flops_per_token(self) -> float:
        """Model FLOPs, forward and backward, of one token of a tile; as `ModelConfig.flops_per_token` counts them, with
        attention to all patches."""
        patches = 1 + self.side**2
        per_patch = self.num_layers * (4 * self.width**2 + 2 * self.width * self.mlp_width)
        per_patch += self.channels * self.patch_size**2 * self.width
        tile = patches * (6.0 * per_patch + 12.0 * self.num_layers * self.width * patches)
        projector = self.merge**2 * self.width * self.out_width + self.out_width**2
        return tile / self.tokens + 6.0 * projector


@dataclass(kw_only=True)
class TimeSeriesConfig:
    """Intern-S1-Pro's tower for signals."""

    bins: int  # width between the patches and the layers
    width: int  # of the residual stream of the layers
    num_layers: int  # layers of the tower
    num_heads: int  # divides width
    mlp_width: int  # inner width of the MLPs
    positions: int  # rows of the learned position table; later tokens have no position
    adapt_width: int  # between the layers and the projector
    out_width: int  # hidden size of the text model

    patch_width: int = 128  # of the patch encoder; published code has this and the following values fixed
    patch_heads: int = 8  # of the patch encoder, divides patch_width
    patch_mlp_width: int = 2048  # of the patch encoder
    patch_positions: int = 20_000  # rows of its table of sines and cosines

    def shapes(self) -> list[Shape]:
        """The shapes of the tower's parameters; the table of sines and cosines is a buffer."""
        w, W = self.patch_width, self.width
        patches = [(w, 1, 5), (w,), *_linear(w, 3 * w), *_linear(w, w), *_norm(w) * 2, *_mlp(w, self.patch_mlp_width)]
        entry = [*_linear(2 * w, self.bins), (W, self.bins, 3), (W,), (W, W, 3), (W,), (self.positions, W)]
        layer = [*_norm(W) * 2, *_linear(W, W) * 3, (W, W), *_mlp(W, self.mlp_width)]
        leave = [*_norm(W), *_linear(W, self.adapt_width), *_projector(self.adapt_width, self.out_width)]
        return [*patches, *entry, *layer * self.num_layers, *leave]

    def flops_per_token(self, stride: int = 24, tokens: int = 1024, channels: int = 1) -> float:
        """Model FLOPs, forward and backward, of one of `tokens` tokens of a signal, each of four patches of 2 x
        `stride` steps of every channel, by default those of 100 Hz; as `ModelConfig.flops_per_token` counts them."""
        w, steps = self.patch_width, 2 * stride
        per_step = 5 * w + 4 * w * w + 2 * w * self.patch_mlp_width
        of_patches = 4 * channels * steps * (6.0 * per_step + 12.0 * w * steps)
        entry = 2 * (2 * w * self.bins + 3 * self.bins * self.width) + 3 * self.width**2
        layers = self.num_layers * (4 * self.width**2 + 2 * self.width * self.mlp_width)
        leave = self.width * self.adapt_width + self.adapt_width * self.out_width + self.out_width**2
        attention = 12.0 * self.num_layers * self.width * (tokens + 1) / 2
        return of_patches + 6.0 * (entry + layers + leave) + attention


@dataclass(kw_only=True)
class EmbeddingConfig:
    """The common space of images and texts, for contrastive learning."""

    width: int  # of the embeddings
    temperature: float = 0.07  # cosine similarities are divided by it; where its training starts
    bias: float = -10.0  # added to all logits of the sigmoid loss; where its training starts

    def shapes(self, hidden_size: int) -> list[Shape]:
        """The shapes of its parameters: two projections, scale and bias."""
        return [*self.named_shapes(hidden_size).values()]

    def named_shapes(self, hidden_size: int) -> dict[str, Shape]:
        """Parameter -> shape, as `DualEncoder` has them."""
        projection = (self.width, hidden_size)
        return {"image_projection": projection, "text_projection": projection, "log_scale": (1,), "bias": (1,)}


@dataclass(kw_only=True)
class ModelConfig:
    """A decoder with grouped-query attention and a grouped Mixture-of-Experts block in every layer, and the towers
    whose outputs take the places of placeholder tokens.

    One router group (`router_groups=1`) is the Qwen3-MoE and Intern-S1 model; 8 groups are Intern-S1-Pro's.
    """

    vocab_size: int  # rows of the embedding and of the LM head; the corpus may use fewer tokens
    hidden_size: int  # width of the residual stream
    num_layers: int  # decoder blocks
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads; divides num_heads
    head_dim: int  # width of a head, even

    num_experts: int  # experts of each layer, over all router groups
    experts_per_token: int  # experts that the router selects for a token, over all router groups
    router_groups: int  # groups that select equally many experts; divides num_experts and experts_per_token
    expert_width: int  # inner width of one expert's SwiGLU

    positions: Literal["rope", "fope"] = "rope"  # rotary embeddings, or Fourier ones on top of them
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    max_position: int = 4096  # longest document; FoPE drops the frequencies that do not turn once within it
    fope_gain: float = 0.5  # xavier gain of the mixing matrices
    # value of the dropped frequencies in the sine table; published code has 1 for the cosine and for the sine, and an
    # open issue of a serving engine calls 1 for the sine a bug and asks for 0
    fope_pad_sin: float = 1.0

    norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    init_std: float = 0.02  # standard deviation of random weights

    # gradient of the router; ste: straight-through, to the logits of all experts; conventional: of the selected experts
    router_gradient: Literal["ste", "conventional"] = "ste"
    router_temperature: float = 1.0  # temperature of the straight-through softmax; its published value is unknown
    balance: Literal["group", "global"] = "group"  # scope of the balance loss: each router group, or all experts
    balance_coef: float = 1e-3  # factor of the balance loss; 0: off
    z_loss_coef: float = 0.0  # factor of the router's z-loss; 0: off

    # grouped_mm: all experts in one grouped matmul; loop: one after the other
    expert_backend: Literal["grouped_mm", "loop"] = field(default="grouped_mm", metadata=FREE)

    vision: VisionConfig | InternViTConfig | None = None  # the tower for images; null: none
    image_token: int | None = None  # id of the placeholder of one image embedding, where there is that tower
    signals: TimeSeriesConfig | None = None  # the tower for signals; null: none
    signal_token: int | None = None  # id of the placeholder of one signal embedding, where there is that tower
    # images and texts are embedded side by side instead of in one sequence; null: they are not
    embedding: EmbeddingConfig | None = None

    def num_params(self) -> int:
        """Parameters of the text model and the towers, equal to the sum of `numel()` over the built module.

        FoPE's mixing matrices are buffers and do not count.
        """
        experts = self.num_layers * self.num_experts * self._expert_params()
        return self._dense_params() + experts + self.tower_params()

    def tower_params(self) -> int:
        """Parameters of the towers, and of the common space of images and texts."""
        return sum(math.prod(shape) for shape in self.tower_shapes())

    def tower_shapes(self) -> list[Shape]:
        """The shapes of the parameters of the towers, and of the common space of images and texts."""
        common = self.embedding.shapes(self.hidden_size) if self.embedding is not None else []
        towers = [shape for tower in (self.vision, self.signals) if tower is not None for shape in tower.shapes()]
        return [*towers, *common]

    def active_params(self) -> int:
        """Parameters that one token of text passes through: all except those of experts that the router did not select,
        and of towers."""
        return self._dense_params() + self.num_layers * self.experts_per_token * self._expert_params()

    def hidden_matrix_params(self) -> int:
        """Parameters in the matrices inside the layers: attention's and the experts', not the router's."""
        return self.num_layers * (self._attention_matrices() + self.num_experts * self._expert_params())

    def flops_per_token(self, seq_len: int, *, head: bool = True) -> float:
        """Model FLOPs of one training token, forward and backward, in documents of `seq_len` tokens; without those of
        the towers, whose configurations count them. head: the LM head is trained.

        6 x the active parameters that are matrices (2 forward, 4 backward; the embedding is a look-up and does not
        count, the LM head does) plus 12 x layers x heads x head_dim x the mean causal span (seq_len + 1) / 2 for QK^T
        and PV. Recomputed activations are not counted. The accounting is that of PaLM (Chowdhery et al. 2022,
        appendix B), with the causal half of the attention only.
        """
        matrices = head * self.vocab_size * self.hidden_size + self.num_layers * (
            self._attention_matrices()
            + self.num_experts * self.hidden_size
            + self.experts_per_token * self._expert_params()
        )
        span = (seq_len + 1) / 2
        return 6.0 * matrices + 12.0 * self.num_layers * self.num_heads * self.head_dim * span

    def newton_schulz_flops(self, iterations: int) -> int:
        """FLOPs of Muon's Newton-Schulz iterations in one step, over all matrices inside the layers, each once."""
        heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = [(rows, self.hidden_size) for rows in (heads[0], heads[1], heads[1])]  # queries, keys, values
        attention.append((self.hidden_size, heads[0]))
        dense = sum(newton_schulz_flops(*matrix, iterations) for matrix in attention)
        expert = 3 * newton_schulz_flops(self.expert_width, self.hidden_size, iterations)
        return self.num_layers * (dense + self.num_experts * expert)

    def fope_frequencies(self) -> int:
        """The rotary frequencies out of head_dim / 2 that FoPE keeps: theta^(-2i/head_dim) > 2 pi / max_position."""
        floor = 2 * math.pi / self.max_position
        return sum(self.rope_theta ** (-2 * i / self.head_dim) > floor for i in range(self.head_dim // 2))

    def _attention_matrices(self) -> int:
        return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)

    def _expert_params(self) -> int:
        return 3 * self.hidden_size * self.expert_width

    def _dense_params(self) -> int:
        norms = 2 * self.hidden_size + 2 * self.head_dim  # before attention and experts; of queries and keys
        layer = self._attention_matrices() + norms + self.num_experts * self.hidden_size
        return 2 * self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


def newton_schulz_flops(rows: int, columns: int, iterations: int) -> int:
    """FLOPs of the matrix products of `trainer.optim.newton_schulz` on one matrix: 4 m^2 n + 2 m^3 an iteration, with m
    its shorter side and n the longer."""
    m, n = sorted((rows, columns))
    return iterations * (4 * m * m * n + 2 * m**3)


def _norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def _linear(inner: int, outer: int) -> list[Shape]:
    return [(outer, inner), (outer,)]


def _mlp(width: int, inner: int) -> list[Shape]:
    return [*_linear(width, inner), *_linear(inner, width)]


def _projector(width: int, out_width: int) -> list[Shape]:
    return [*_norm(width), *_linear(width, out_width), *_linear(out_width, out_width)]
