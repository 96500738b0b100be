"""Training: volumes in, a model bundle out."""

from .config import ForestTraining, Training, load_training, parse_training

__all__ = ["ForestTraining", "Training", "load_training", "parse_training"]
