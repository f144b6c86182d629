"""The command ``wsiweb``, as ``python -m wsiweb`` too: a Ctrl-C is heeded at any moment, imports included."""

import sys


def main() -> None:
    """Run the command; a Ctrl-C becomes exit code 130."""
    try:
        from wsiweb.cli import main as run  # noqa: PLC0415  (most of what a short command takes)

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
