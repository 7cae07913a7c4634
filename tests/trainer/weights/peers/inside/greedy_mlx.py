"""Greedy answers of mlx-lm. DIR TOKENS; the input is a list of prompts as ids."""

import json
import sys

from mlx_lm import load, stream_generate
from mlx_lm.sample_utils import make_sampler

model, tokenizer = load(sys.argv[1])
greedy = make_sampler(temp=0.0)
answers = [
    [int(part.token) for part in stream_generate(model, tokenizer, prompt, int(sys.argv[2]), sampler=greedy)]
    for prompt in json.load(sys.stdin)
]
print(json.dumps(answers))
