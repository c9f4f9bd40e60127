"""The ground floor: what every other folder may import, and what imports nothing of this package outside itself."""

__version__ = "0.1.0"
