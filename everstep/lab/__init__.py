"""Generated tasks, remedies for vanishing gradients, and the search for a cell."""
