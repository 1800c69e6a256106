"""Baselines for a delta that change a model's weights."""
