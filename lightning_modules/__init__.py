"""What is optimised or measured."""
