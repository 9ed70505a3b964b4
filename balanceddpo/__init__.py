"""Align text-to-image diffusion models with several, conflicting measures of quality at once."""

import lazy_loader

__version__ = "0.2.0"

# The names that most users need stand in __init__.pyi, where type checkers look too.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
