"""Studies: files that say which stages there are, and the runner of what is not done yet."""
