"""Tracing a step into a graph of tensor operations, and tracking what the graph depends on."""
