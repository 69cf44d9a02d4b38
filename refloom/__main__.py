"""`python -m refloom`."""

from refloom.cli import main

main()
