"""Files, locks and processes of this machine; imports nothing else of Octavo."""
