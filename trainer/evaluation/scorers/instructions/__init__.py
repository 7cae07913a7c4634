"""IFBench: 58 constraints that an answer follows or not.

The definitions are those of allenai/IFBench (instructions.py), which OpenCompass 0.5.4 carries; their quirks are kept
and named where they are.
"""
