"""The experts of a layer: one module, several back ends."""
