"""Evaluation: suites of questions, clients that answer them, a ledger of the answers, and results.

| file | what |
|---|---|
| `suite` | the contract of a suite: `Item`, `Scored`, `Summary`, `Suite` |
| `files` | reads the files of a benchmark, with one error for a missing or damaged one |
| `registry` | all suites by name |
| `suites/` | one module per family of benchmarks; `scorers/` their metrics |
"""
