"""Where a network comes from: files, model zoos, and the user's own code."""

from fxquant.models.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
