"""What an evaluation leaves behind: results with their intervals, a page, and the list of suites."""
