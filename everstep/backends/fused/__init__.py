"""Any cell at compiled speed: its step as a graph of one row, split, differentiated, written as C++ and run."""
