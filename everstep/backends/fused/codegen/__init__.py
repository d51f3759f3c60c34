"""From the graph of a row to C++: order, shared memory, loops."""
