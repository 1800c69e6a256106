"""Dictionaries: frozen JumpReLU transcoders, deltas beside them, stacks of them in training."""
