"""The scores of `land_cover_metric` as a metric of Hugging Face's `evaluate`.

metric = evaluate.load("datasets_loading/evaluate_land_cover.py")
for predictions, references in tiles:  # classes from 0, 255 = unlabelled
    metric.add_batch(predictions=predictions.ravel(), references=references.ravel())
metric.compute(num_classes=8)
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from datasets_loading.land_cover_metric import FEW_PIXELS, confusion_matrix, land_cover_scores


class LandCover(evaluate.Metric):
    """Collects predictions and references of classes; `compute` returns what `land_cover_scores` does."""

    def _info(self) -> evaluate.MetricInfo:
        values = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=str(land_cover_scores.__doc__), citation="", inputs_description="classes", features=values
        )

    def _compute(
        self,
        predictions: Sequence[int],
        references: Sequence[int],
        num_classes: int | None = None,
        min_support: int = FEW_PIXELS,
    ) -> dict[str, Any]:
        matrix = confusion_matrix(np.asarray(predictions), np.asarray(references), num_classes=num_classes)
        return land_cover_scores(matrix, min_support=min_support)
