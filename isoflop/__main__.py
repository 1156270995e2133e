"""`python -m isoflop`."""

from isoflop.cli import main

main()
