"""One training run: process, build, loop and what surrounds a step."""
