"""Environments: conversations of several turns in which a model calls tools, and the driver that plays them."""
