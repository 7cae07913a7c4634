"""The optimizer behind a seam of four calls (`engine.Engine`): torch's own (`native`), or DeepSpeed's ZeRO."""
