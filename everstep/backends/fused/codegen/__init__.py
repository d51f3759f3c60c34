"""Code generation from a row graph to C++: scheduling, memory sharing, loops."""
