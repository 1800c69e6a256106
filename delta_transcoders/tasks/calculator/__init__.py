"""A tool call as text: what it looks like, and whether what it asks for is right."""
