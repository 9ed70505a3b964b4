"""Align text-to-image diffusion models with several, conflicting measures of quality at once."""
__version__ = "0.1.0"
