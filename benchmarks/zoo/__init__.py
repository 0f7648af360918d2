"""How far fxquant gets with whole model zoos; `python -m zoo --help`, with this folder's parent on
PYTHONPATH."""
