"""Crash-safe files: atomic writes, locks, bounded reads."""
