"""What every job shares: recipes, run folders, training, resuming, cards."""
