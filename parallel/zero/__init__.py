"""DeepSpeed's ZeRO as an optimizer engine, with its state and weights on the device, the host or NVMe."""
