"""Is everything there for a study, does it fit together, and what will it take? Asked before it is run."""
