"""The parts that all jobs share: recipes, run folders, training, resuming, cards."""
