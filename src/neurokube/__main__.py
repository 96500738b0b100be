"""`python -m neurokube` is `neurokube`."""

from .cli import main

main()
