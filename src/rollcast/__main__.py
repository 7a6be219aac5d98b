"""`python -m rollcast`."""

from rollcast.cli import main

main()
