"""Frozen matrices that stay in FP8 as a checkpoint has them: e4m3 codes, and an fp32 scale for each block of 128 x 128.

| part | file |
|---|---|
| blocks, and codes times scales | `blocks` |
| attention's projections | `linear` |
| the experts' products, and experts without adapters | `experts` |
| the experts' products by Transformer Engine, on Hopper | `blocks_gemm` |
| put codes and scales in the place of a model's matrices | `hold` |

The codes are parameters of one byte an element under the names of the matrices, so that they are sharded, gathered and
counted as these are. Values exist for one matrix of attention, or for a few experts, and only while they are
multiplied; backward makes them again.
"""
