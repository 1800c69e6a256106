"""What is written in place of an MLP's output: interventions as data, their sources, and the engine."""
