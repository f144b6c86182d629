"""``python -m wsiweb`` is the command ``wsiweb``."""

from wsiweb.cli import main

if __name__ == "__main__":
    main()
