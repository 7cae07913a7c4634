"""Results of an evaluation with their intervals and their page, and the list of suites."""
