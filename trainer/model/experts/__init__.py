"""SwiGLU experts: one module with two parameters, and one file for each back end behind one contract (`base.Backend`).

| back end | file | used for |
|---|---|---|
| `grouped_mm` | `grouped_mm`, on a CPU `blocked_cpu` | the default: torch's grouped GEMM; a CPU has no grouped kernel |
| the same, fused | `fused_grouped_mm` | `train.kernels=triton` |
| `loop` | `loop` | the reference: one matmul after another |
| FP8 | `te/` | `precision.experts` in FP8 on a GPU: Transformer Engine's grouped GEMM |
| `fp8_reference` | `fp8_reference` | FP8's rounding in fp32 arithmetic, on any device |
| any, on fake tensors | `simulated`, `te/shapes` | `trainer.run.simulate` |

`choose` picks one when a model is built.
"""
