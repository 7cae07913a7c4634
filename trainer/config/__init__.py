"""The keys of a run, how they are composed, and the checks on them. No torch here."""
