"""What is trained and how a run goes."""
