"""Whether the map of a scene is what its windows say: beside single windows, another cut, and half precision."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from datasets_loading.scenes import Scene
from hsst.experiments.scene_speed import CroppedScene, crop_middle
from modeling_hsst.scene_prediction_hsst import ScenePredictor


def measure_agreement(
    scene: Scene, predictor: ScenePredictor, *, crop: int = 256, num_windows: int = 256
) -> dict[str, Any]:
    """
    Measures how maps of the middle of a scene agree where they should.

    Args:
        scene: the scene.
        predictor: a model with a head for every pixel, on its device.
        crop: side of what is mapped, in pixels; made a multiple of the window.
        num_windows: windows that the model sees one by one, spread evenly.

    Returns:
        Ready for JSON: `single_windows`, the map of windows side by side beside the model called for one window at a
        time; `shifted`, for some strides and shifts, the map beside that of the same scene cut so many pixels later;
        `half_precision`, the map of windows side by side beside that of the same model in bfloat16.

    Raises:
        ValueError: the head is not one for every pixel, or there is no room for four windows beside each other.
    """
    if not predictor.dense:
        raise ValueError(f"expected a model with a head for every pixel, got {type(predictor.model).__name__}")
    window = max(predictor.window)
    side = min(*crop_middle(scene, crop).shape) // window * window
    if side < 4 * window:
        raise ValueError(f"expected at least {4 * window} pixels, four windows of the model, in a row, got {side}")
    middle, side_by_side = crop_middle(scene, side), with_stride(predictor, window)
    mapped = predict_whole(middle, side_by_side)
    half, quarter = max(window // 2, 1), max(window // 4, 1)
    return {
        "scene": scene.name,
        "side": side,
        "window": list(predictor.window),
        "parameters": sum(parameter.numel() for parameter in predictor.model.parameters()),
        "single_windows": compare_single_windows(middle, side_by_side, mapped, num_windows),
        "shifted": [
            compare_shifted(scene, with_stride(predictor, stride), side, shift)
            for stride, shift in ((half, half), (half, quarter), (window, half))
        ],
        "half_precision": compare_half_precision(middle, side_by_side, mapped),
    }


def with_stride(predictor: ScenePredictor, stride: int) -> ScenePredictor:
    """The same predictor with another distance in pixels between windows."""
    changed = copy.copy(predictor)
    changed.stride = stride
    return changed


def predict_whole(scene: CroppedScene, predictor: ScenePredictor) -> np.ndarray:
    """Probabilities of a whole scene, float32 (classes, height, width), NaN where there is no class."""
    probabilities = np.full((len(predictor.class_names), *scene.shape), np.nan, dtype=np.float32)
    for part in predictor.predict(scene):
        probabilities[:, part.rows, part.columns] = part.probabilities
    return probabilities


@torch.inference_mode()
def predict_window(scene: CroppedScene, predictor: ScenePredictor, rows: slice, columns: slice) -> np.ndarray:
    """Probabilities of one window, float32 (classes, height, width), by processor and model alone."""
    model, processor = predictor.model, predictor.processor
    pixels = torch.as_tensor(predictor.select_bands(scene).read(scene, rows, columns))[None].to(model.device)
    values, pixel_mask = processor.standardize(pixels, scale=scene.scale, nodata=scene.nodata)
    usable = ~scene.read_excluded(rows, columns, predictor.exclude)
    pixel_mask = pixel_mask & torch.as_tensor(usable, device=pixel_mask.device)
    logits = model(pixel_values=values.to(model.dtype), pixel_mask=pixel_mask).logits
    return logits.float().softmax(dim=1)[0].cpu().numpy()


def compare_single_windows(
    scene: CroppedScene, predictor: ScenePredictor, mapped: np.ndarray, num_windows: int
) -> dict[str, Any]:
    """The map of windows side by side, beside the model called for one window at a time."""
    height, width = predictor.window
    starts = [(row, column) for row in range(0, scene.shape[0], height) for column in range(0, scene.shape[1], width)]
    chosen = np.unique(np.linspace(0, len(starts) - 1, num_windows).astype(int))
    beside = np.full_like(mapped, np.nan)
    for row, column in (starts[number] for number in chosen):
        place = slice(row, row + height), slice(column, column + width)
        beside[:, place[0], place[1]] = predict_window(scene, predictor, *place)
    compared = np.isfinite(mapped[0]) & np.isfinite(beside[0])
    return {"windows": len(chosen), **agreement(mapped, beside, compared)}


def compare_shifted(scene: Scene, predictor: ScenePredictor, side: int, shift: int) -> dict[str, Any]:
    """The map of the middle of a scene beside that of the same pixels without the first `shift` rows and columns."""
    middle = crop_middle(scene, side)
    first = predict_whole(middle, predictor)[:, shift:, shift:]
    second = predict_whole(CroppedScene(middle, slice(shift, side), slice(shift, side)), predictor)
    mapped = np.isfinite(first[0]) & np.isfinite(second[0])
    # Farther from the edges than a window reaches
    inside = np.zeros_like(mapped)
    margin = max(predictor.window)
    inside[margin:-margin, margin:-margin] = True
    return {
        "stride": predictor.stride,
        "shift": shift,
        "everywhere": agreement(first, second, mapped),
        "inside": agreement(first, second, mapped & inside),
    }


def compare_half_precision(scene: CroppedScene, predictor: ScenePredictor, mapped: np.ndarray) -> dict[str, Any]:
    """The map of a scene beside that of the same model in bfloat16."""
    rounded = copy.copy(predictor)
    rounded.model = copy.deepcopy(predictor.model).to(torch.bfloat16)
    other = predict_whole(scene, rounded)
    return {"precision": "bfloat16", **agreement(mapped, other, np.isfinite(mapped[0]) & np.isfinite(other[0]))}


def agreement(first: np.ndarray, second: np.ndarray, compared: np.ndarray) -> dict[str, Any]:
    """
    Pixels compared, the share of them with the same class, and the differences of their probabilities.

    Args:
        first: probabilities (classes, height, width).
        second: the same of another map.
        compared: which pixels count, bool (height, width).

    Raises:
        ValueError: no pixel is compared.
    """
    if not compared.any():
        raise ValueError("expected pixels with a class in the middle of the scene, got none")
    differences = np.abs(first - second)[:, compared]
    same = (first.argmax(axis=0) == second.argmax(axis=0))[compared]
    return {
        "pixels": int(compared.sum()),
        "same_class": float(same.mean()),
        "mean_difference": float(differences.mean()),
        "largest_difference": float(differences.max()),
    }
