"""Plain single-device modules of the Intern-S1 family: decoder, attention, positions, router, experts."""
