"""`python -m fxquant.cli`."""

from fxquant.cli.main import main

main()
