"""Text for the base dictionaries of a real model: collected, deduplicated, and accounted for."""
