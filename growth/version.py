"""The version that is installed."""

import importlib.metadata

__version__ = importlib.metadata.version("flax-growth")
