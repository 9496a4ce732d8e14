"""The version, in a module of its own so that a mask file can name it."""

__version__ = "0.1.0"
