"""Generation over the training model's own modules.

| file | what |
|---|---|
| `request` | what is asked for, what comes back, and the limits |
| `media` | images and signals in the places of their placeholders; no torch |
| `pages` | which pages of the cache belong to whom, and which prefixes they hold; no torch |
| `cache` | keys, values and routes in pages, and attention over them |
| `run` | one step of the model for tokens of many requests |
| `spread` | the experts of a model spread over ranks |
| `ranks` | what the ranks of an engine agree on at every step |
| `sampling` | draws that depend on a request's seed and position alone |
| `text` | text from tokens as they come, and stop strings |
| `engine` | requests that join and leave at every step |
| `load` | a model and its tokenizer from a run or an export |
| `text_model` | both with an engine, for a few lines of Python |

With a model in exact arithmetic (`trainer.model.exact`) what a request gets depends on itself alone, bit for bit, and
its log-probabilities and routes are those of a training forward pass in that arithmetic.
"""
