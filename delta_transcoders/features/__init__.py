"""Delta features one by one: what each fires on, what it writes, what removing it does."""
