"""Results of an evaluation with their page, and the list of suites."""
