"""What is written or shown on the side of a run."""
