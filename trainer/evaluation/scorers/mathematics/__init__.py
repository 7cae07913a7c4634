"""Equality of mathematical answers by math-verify, in a process of its own."""
