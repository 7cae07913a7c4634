"""The HTTP server of `octavo serve`: OpenAI's and LMDeploy's requests over `trainer.engine`.

| file | what |
|---|---|
| `errors` | what a client can do wrong, in OpenAI's shape |
| `bodies` | bodies read within their limits, and the fields of each kind of request |
| `worker` | the one thread that steps the engine, and answers that arrive from it |
| `kept` | answers on disk, for after a kill |
| `model` | what is served: tokens to text, texts to prompts, limits |
| `logprobs` | log-probabilities in both of OpenAI's shapes |
| `media` | images and signals of messages |
| `completions`, `chat`, `generate` | one kind of request each |
| `app` | routes, tokens of access, what every request passes through |
| `run` | sockets, signals, the end of the server |
"""
