"""Ways to run a cell over time, each equal in result to `reference.py`."""
