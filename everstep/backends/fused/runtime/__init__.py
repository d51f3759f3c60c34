"""Execution of compiled steps: programs, call tables, calls."""
