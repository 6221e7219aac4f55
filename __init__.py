"""One ResNet trunk, many branches: vision models for downstream tasks."""

from .compat import install

__version__ = "0.2.0"

install()
