"""What goes into and comes out of a model's MLPs: hook sites, capture, and the cache on disk."""
