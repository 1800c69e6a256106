"""What a behaviour is: examples, when an answer ends, and how it is judged."""
