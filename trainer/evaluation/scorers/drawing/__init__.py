"""SVG drawings: rendered in a process of its own, and compared with a reference image."""
