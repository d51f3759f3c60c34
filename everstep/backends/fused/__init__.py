"""The compiled engine: a step as a graph of one row, split, differentiated, generated as C++, compiled and run."""
