"""Libraries that may hang or crash, each in a process of its own with a deadline for each question."""
