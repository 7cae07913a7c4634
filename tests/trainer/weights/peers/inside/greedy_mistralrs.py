"""Greedy answers of mistral.rs. DIR TOKENS; the input is a list of prompts as text."""

import json
import sys

from mistralrs import Architecture, CompletionRequest, Runner, Which

runner = Runner(which=Which.Plain(model_id=sys.argv[1], arch=Architecture.Qwen3Moe))
answers = [
    runner.send_completion_request(
        CompletionRequest(prompt=prompt, model="default", max_tokens=int(sys.argv[2]), temperature=0.0, top_k=1)
    )
    .choices[0]
    .text
    for prompt in json.load(sys.stdin)
]
print(json.dumps(answers))
