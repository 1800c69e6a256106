"""Rules that say in words and regular expressions where a unit fires, scored on texts nobody had seen."""
