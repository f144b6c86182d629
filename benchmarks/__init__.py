"""How fast wsiweb and its peers read, measured by anyone: ``python -m benchmarks --help``. See ``README.md``."""
