"""Training: volumes in, a model bundle out."""

from .config import Training, load_training, parse_training

__all__ = ["Training", "load_training", "parse_training"]
