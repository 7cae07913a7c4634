"""Evaluation: suites of questions, clients that answer them, a ledger of the answers, and results.

| file | what |
|---|---|
| `suite` | the contract of a suite: `Item`, `Scored`, `Summary`, `Suite` |
| `files` | reads the files of a benchmark; a cell of another kind is refused by file, row and column |
| `registry` | all suites by name |
| `suites/` | one module per family of benchmarks; `scorers/` their metrics |
| `asking`, `served`, `embedded` | what asks a model, and what answers |
| `output/` | results, their intervals and their page |
"""
