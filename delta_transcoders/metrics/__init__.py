"""What is measured: rates, means and reconstructions, with their error bars."""
