"""Forms as plain C++: every recorded operation becomes loops, for what the compiled engine does not write."""
