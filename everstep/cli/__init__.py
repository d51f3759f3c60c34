"""The command line: the only place where strings become objects. No torch is imported before a verb needs it."""

import sys


def main() -> None:
    """Entry point of the `everstep` script."""
    try:
        from everstep.cli.ending import ended, heed_interrupts, prepare_streams

        heed_interrupts()
    except KeyboardInterrupt:  # before any other handler is installed
        if sys.stderr is not None:
            sys.stderr.write("everstep: interrupted.\n")
        sys.exit(130)
    prepare_streams()
    with ended():
        from everstep.cli.app import app

        app(prog_name="everstep")


__all__ = ["main"]
