"""What leaves the house: a trained model as a file for other runtimes."""
