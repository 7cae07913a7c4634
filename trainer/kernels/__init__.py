"""Triton kernels for CUDA that replace operations of `trainer.model.ops`, chosen with `train.kernels=triton`.

| kernel | replaces | used by |
|---|---|---|
| `triton_swiglu` | silu(gate) * up * weight and its gradients | the FP8 experts, `fused_grouped_mm` |
| `triton_order`, `triton_rows` | `PaddedOrder`: sort, pad, gather, sum | the FP8 experts, `fused_grouped_mm` |
| `triton_router` | `select_experts`, `router_weights` and its gradients | the router |
| `triton_payload` | `parallel.dispatch.payload.Fp8`: quantise 1 x 128, pack, unpack | the dispatcher |

Quantisation is fused only into what travels: Transformer Engine refuses operands that are in FP8 already, so it
quantises the results of the activation and the gather in passes of its own.

Only `triton_ops` imports them, and `choose.make_ops` imports that when asked for Triton. No profile has shown yet that
they pay, so torch is the default; `make bench-gpu` times each under both.
"""
