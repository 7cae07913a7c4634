"""The stateless mixture: what a recipe may ask for (`spec`), and which window each sample number stands for (`index`).

Nothing is imported here: the command line reads `spec` and starts without numpy.
"""
