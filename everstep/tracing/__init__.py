"""A step becomes a graph of tensor operations; and what that graph depends on."""
