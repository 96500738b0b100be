"""Models beside one another: what each scores on annotated volumes that it never saw.

Thresholds come from validation volumes or from the models' cards, never from the volumes that are tested.
"""

from .evaluate import evaluate_models
from .fusion import FusionReport, fit_fusion, print_fusion
from .prediction import predict_volume
from .report import ModelScores, ModelsReport, Score, print_models

__all__ = [
    "FusionReport",
    "ModelScores",
    "ModelsReport",
    "Score",
    "evaluate_models",
    "fit_fusion",
    "predict_volume",
    "print_fusion",
    "print_models",
]
