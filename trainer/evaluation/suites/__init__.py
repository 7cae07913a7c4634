"""The benchmarks' suites. Each module has `SUITES`, a tuple of `Suite`, which `trainer.evaluation.registry` joins."""
