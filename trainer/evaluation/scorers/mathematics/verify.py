"""Compares mathematical answers with a deadline: sympy may need hours to simplify what a model writes."""

from __future__ import annotations

from trainer.evaluation.scorers.worker import Worker

MODULE = "trainer.evaluation.scorers.mathematics.worker"


def equal(worker: Worker, answer: str, reference: str) -> bool | None:
    """True if the answer's last expression equals the reference; None if it has none; False after the deadline."""
    try:
        verdict: bool | None = worker.ask([answer, reference])
    except TimeoutError:
        return False
    return verdict
