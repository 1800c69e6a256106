"""Deltas trained through the running model: student, losses, and one feature budget over all layers."""
