"""Adapters of low rank beside frozen matrices (LoRA): y = W x + s B A x, where A and B alone are trained.

| part | file |
|---|---|
| attention's projections | `linear` |
| the experts | `experts`, a back end of `trainer.model.experts.base.Backend`, and `gemm`, the products in it |
| add them to a model, initial values, which parameters train | `adapt` |

The product with the frozen matrix is an object of its own in both: a base that is stored in another way replaces
`AdaptedLinear.base`, or `AdaptedExperts.up` and `AdaptedExperts.down`.
"""
