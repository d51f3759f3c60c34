"""Backends that run a cell over time, all with the results of `reference.py`."""
