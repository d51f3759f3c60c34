"""The command line: the only place where strings become objects. No torch is imported before a verb needs it."""

from everstep.cli.app import main

__all__ = ["main"]
