"""Arithmetic in which no row depends on the rows beside it.

Usual matrix products choose how to add up by the number of rows, so that a token's result changes in its last bits with
the batch that it is in. Here what is in fp32 on a CPU is compiled, with one order of every sum. Other products are made
of blocks of one fixed shape, filled up with zeros: rows of activations in blocks of `ROWS`, rows of experts in blocks
of `EXPERT_ROWS`, keys in blocks of `KEYS` that are added up in the order of their positions. A token's hidden states,
routes and log-probabilities then depend on the tokens before it alone, bit by bit: not on the batch, on where its text
was cut, or on what was cached.

| file | what |
|---|---|
| `compiled`, `library`, `*.c` | products, experts and attention in fp32 on a CPU |
| `blocks` | products by row blocks |
| `ops` | the model's operations |
| `attention` | attention by blocks of keys, for a training batch and for cached keys |
| `switch` | puts them into a model |
| `check` | finds products of this machine that are not exact |

Backward passes are the usual ones: gradients are right, but depend on the batch in their last bits.
"""
