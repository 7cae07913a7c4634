"""Tables of measurements, a module for each place they come from."""
