"""Runs with adapters, whose checkpoints do not hold the weights that the adapters belong to.

| part | file |
|---|---|
| recognise those weights again | `base` |
| read the checkpoint as if it held the merged weights | `merged` |
| write the adapters as PEFT does | `peft` |
"""
