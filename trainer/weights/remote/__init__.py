"""Code that exports carry: a configuration and a model for transformers' `trust_remote_code`.

The files beside this one are copied into exports as they are. Octavo never imports them: they need transformers, and
nothing of Octavo.
"""
