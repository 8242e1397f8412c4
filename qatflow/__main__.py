"""`python -m qatflow`, and the command `qatflow`."""

import sys

from qatflow.results.signals import end_early


def main() -> int:
    """Carry out the command line of the process and return its exit code; signals are heard before the imports."""
    end_early()
    from qatflow.door.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
