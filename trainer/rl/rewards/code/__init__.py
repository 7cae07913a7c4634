"""Programs that a model wrote: a guard around them, and rewards by unit tests."""
