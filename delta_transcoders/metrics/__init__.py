"""What is measured: means over groups of rows, and their error bars."""
