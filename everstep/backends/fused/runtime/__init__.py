"""Compiled steps: their programs, the tables of a call, and the call itself."""
