"""What people look at in a browser: a study's report and its features."""
