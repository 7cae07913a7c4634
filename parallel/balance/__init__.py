"""Even loads over ranks: which rank computes what, and the exchange that brings it there and back."""
