"""Models beside one another: what each scores on annotated volumes that it never saw.

Thresholds come from validation volumes or from the models' cards, never from the volumes that are tested.
"""

from .evaluate import evaluate_models
from .prediction import predict_volume
from .report import ModelScores, ModelsReport, Score, print_models

__all__ = ["ModelScores", "ModelsReport", "Score", "evaluate_models", "predict_volume", "print_models"]
