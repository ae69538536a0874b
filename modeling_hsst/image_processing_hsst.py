# Copyright 2026 The HSST authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Image processor of HSST: from a sensor's stored numbers to standardized windows and a mask of valid pixels.

Band centers, scale, clip range, nodata value, mean and standard deviation belong to the weights and travel with them
in `preprocessor_config.json`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .bands_hsst import describe_shared_band, match_bands

logger = logging.get_logger(__name__)


class HSSTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""As for [`HSSTImageProcessor`]."""

    wavelengths: list[float] | tuple[float, ...] | None
    band_indices: list[int] | tuple[int, ...] | None
    num_source_bands: int | None
    wavelength_tolerance: float | None
    scale: float | None
    nodata: float | int | None
    clip_range: list[float] | tuple[float, float] | None


# @auto_docstring would describe 8-bit images and drop the arguments given here
class HSSTImageProcessor(BaseImageProcessor):  # trf-ignore: TRF057
    r"""
    Turns hyperspectral images into the input of HSST: picks the model's bands, marks pixels without data, clips
    reflectance and standardizes each band.

    Args:
        image_mean (`list[float]`, *optional*):
            Mean reflectance of each band. Defaults to 0.
        image_std (`list[float]`, *optional*):
            Standard deviation of the reflectance of each band. Defaults to 1.
        wavelengths (`list[float]`, *optional*):
            Band centers of the model's bands in nm.
        band_indices (`list[int]`, *optional*):
            The model's bands (from 0) in an image that has all `num_source_bands` bands of the sensor.
        num_source_bands (`int`, *optional*):
            Number of bands of the sensor's files, to tell such an image by its band count.
        wavelength_tolerance (`float`, *optional*, defaults to 5.0):
            Greatest distance in nm between a band of the model and the image band that stands in for it.
        scale (`float`, *optional*, defaults to 10000.0):
            Stored number that means a reflectance of 1.
        nodata (`float`, *optional*, defaults to -32768):
            Stored number that means no data. NaN and infinity always do.
        clip_range (`list[float]`, *optional*, defaults to `[-0.02, 1.0]`):
            Reflectance is clipped to this range before it is standardized.
    """

    model_input_names = ["pixel_values", "pixel_mask"]
    valid_kwargs = HSSTImageProcessorKwargs

    image_mean = None
    image_std = None
    wavelengths = None
    band_indices = None
    num_source_bands = None
    wavelength_tolerance = 5.0
    scale = 10000.0
    nodata = -32768
    clip_range = [-0.02, 1.0]

    def __init__(self, **kwargs: Any) -> None:
        # It names code that lay beside the checkpoint and that `save_pretrained` of the package's class does not copy
        if not __name__.startswith("transformers_modules"):
            kwargs.pop("auto_map", None)
        band_lists = ("image_mean", "image_std", "wavelengths", "band_indices")
        for name in (*band_lists, "clip_range"):
            if kwargs.get(name) is not None:
                kwargs[name] = as_list(name, kwargs[name])
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        lengths = {name: len(getattr(self, name)) for name in band_lists if getattr(self, name) is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Each of these needs one entry for each band of the model, got {lengths}.")
        self.num_bands = next(iter(lengths.values()), None)
        for name in (*band_lists[:3], "clip_range"):
            for value in getattr(self, name) or ():
                check_number(name, value, finite=True)
        for name in ("image_std", "wavelengths"):
            if min(getattr(self, name) or (1,)) <= 0:
                raise ValueError(f"`{name}` must be positive in every band, got {min(getattr(self, name))}.")
        for name in ("scale", "wavelength_tolerance"):
            check_scale(getattr(self, name), name)
        check_number("nodata", self.nodata)
        if len(self.clip_range) != 2 or self.clip_range[0] >= self.clip_range[1]:
            raise ValueError(f"`clip_range` must hold a number and a greater one, got {self.clip_range}.")
        self._check_band_indices()

    def _check_band_indices(self) -> None:
        if self.band_indices is None:
            return
        if self.num_source_bands is None:
            raise ValueError("`band_indices` needs `num_source_bands`, the number of bands of the sensor's files.")
        for band in self.band_indices:
            if not isinstance(band, (int, np.integer)) or not 0 <= band < self.num_source_bands:
                raise ValueError(f"`band_indices` must lie between 0 and {self.num_source_bands - 1}, got {band!r}.")

    def to_dict(self) -> dict[str, Any]:
        # What a hyperspectral image has no use for would only puzzle the reader of preprocessor_config.json
        own = ["image_mean", "image_std", "wavelengths", "band_indices", "num_source_bands", "wavelength_tolerance"]
        own += ["scale", "nodata", "clip_range", "image_processor_type", "auto_map"]
        return {key: value for key, value in super().to_dict().items() if key in own and value is not None}

    def preprocess(  # trf-ignore: TRF057
        self,
        images: Any,
        wavelengths: Sequence[float] | np.ndarray | torch.Tensor | None = None,
        return_tensors: str | None = "pt",
        scale: float | None = None,
        nodata: float | None = None,
        device: torch.device | str | None = None,
    ) -> BatchFeature:
        """
        Args:
            images: one image (bands, height, width), a batch (batch, bands, height, width) or a list of images of
                equal size; NumPy arrays or torch tensors of stored numbers (reflectance times `scale`), any device.
                The bands are the model's, or all those of the sensor's files (`num_source_bands`), in this order; with
                `wavelengths` any bands in any order.
            wavelengths: band centers of the images in nm, one for each of their bands; the model's bands are then
                picked by wavelength.
            return_tensors: `"pt"` for torch tensors (default), `"np"` for NumPy arrays.
            scale, nodata: stored numbers that mean a reflectance of 1 and no data, where not the processor's.
            device: where to compute; by default where the images are.

        Returns:
            `pixel_values`, float32 (batch, bands, height, width), and `pixel_mask`, int64 (batch, height, width), 1
            where a pixel has data in all bands of the model. Pixels without data are 0 in `pixel_values`.

        Raises:
            ValueError: the images have another shape or number of bands, lack a wavelength of the model, or one has no
                valid pixel.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"`return_tensors` must be 'pt' or 'np', got {return_tensors!r}.")
        pixels = self.stack_images(images, device)
        bands = self.find_bands(pixels.shape[1], wavelengths)
        if bands is not None:
            pixels = pixels[:, torch.tensor(bands, device=pixels.device)]
        scale, nodata = self.scale if scale is None else scale, self.nodata if nodata is None else nodata
        check_number("nodata", nodata)
        check_stored(pixels, scale, nodata, self.clip_range[1])
        pixel_values, pixel_mask = self.standardize(pixels, scale=scale, nodata=nodata)
        empty = (~pixel_mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"Expected at least one valid pixel in every image, got image {empty[0]} of {len(pixels)} without "
                f"any: every pixel holds nodata ({nodata}) or NaN in some band."
            )
        data: dict[str, Any] = {"pixel_values": pixel_values, "pixel_mask": pixel_mask.long()}
        if return_tensors == "np":
            data = {name: tensor.cpu().numpy() for name, tensor in data.items()}
        return BatchFeature(data)

    def stack_images(self, images: Any, device: torch.device | str | None = None) -> torch.Tensor:
        """One tensor (batch, bands, height, width) of the images as they are stored."""
        if isinstance(images, (list, tuple)) and (not images or np.ndim(images[0])):
            tensors = [as_numbers(image) for image in images]
            shapes = {tuple(tensor.shape) for tensor in tensors}
            if len(shapes) != 1:
                raise ValueError(f"Images of a batch must have one shape, got {sorted(shapes) or 'no image'}.")
            pixels = torch.stack(tensors) if tensors[0].ndim == 3 else torch.cat(tensors)
        else:
            pixels = as_numbers(images)
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(0)
        if pixels.ndim != 4:
            raise ValueError(
                "Expected an image (bands, height, width) or a batch (batch, bands, height, width), got the shape "
                f"{tuple(pixels.shape)}."
            )
        return pixels if device is None else pixels.to(device)

    def find_bands(
        self, num_image_bands: int, wavelengths: Sequence[float] | np.ndarray | torch.Tensor | None = None
    ) -> list[int] | None:
        """Indices of the model's bands in images of `num_image_bands` bands; None where they are just these."""
        if wavelengths is not None:
            centers = [*map(float, as_list("wavelengths", wavelengths))]
            if len(centers) != num_image_bands:
                raise ValueError(
                    f"`wavelengths` must hold one band center for each of the {num_image_bands} bands of the image, "
                    f"got {len(centers)}."
                )
            return self.match_wavelengths(centers)
        if self.num_bands is None or num_image_bands == self.num_bands:
            return None
        if self.band_indices is not None and num_image_bands == self.num_source_bands:
            return list(self.band_indices)
        expected = f"the {self.num_bands} bands of the model"
        if self.band_indices is not None:
            expected += f" or all {self.num_source_bands} bands of the sensor's files"
        raise ValueError(
            f"Expected an image with {expected} as its first dimension, got {num_image_bands} bands; give their "
            "`wavelengths` (nm) to pick the model's bands from any others."
        )

    def match_wavelengths(
        self, centers: Sequence[float] | np.ndarray, with_data: Sequence[bool] | np.ndarray | None = None
    ) -> list[int]:
        """
        For each band of the model the index of the nearest of `centers` (nm). Where one is the nearest to two bands,
        as between the detectors of EnMAP, whose ranges overlap, the other band takes the nearest one that is left.

        Args:
            centers: band centers of an image in nm (bands,).
            with_data: which of its bands hold data (bands,); only these are taken. All by default.

        Raises:
            ValueError: the processor knows no wavelengths, or a band of the model has none of `centers` within
                `wavelength_tolerance`, or none that is left.
        """
        if self.wavelengths is None:
            raise ValueError("This processor does not know the wavelengths of the model's bands: pass images as is.")
        wanted, given = np.asarray(self.wavelengths, dtype=np.float64), np.asarray(centers, dtype=np.float64)
        candidates = np.arange(len(given)) if with_data is None else np.flatnonzero(with_data)
        given = given[candidates]
        if not len(given):
            raise ValueError("Expected bands with data, got none.")
        kind = "band" if with_data is None else "band with data"
        missing = np.flatnonzero(np.abs(wanted[:, None] - given).min(axis=1) > self.wavelength_tolerance)
        if len(missing):
            named = ", ".join(f"{wanted[band]:.1f}" for band in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"Expected a {kind} within {self.wavelength_tolerance} nm of each of the model's {len(wanted)} bands, "
                f"but {len(missing)} have none: {named} nm; the image has {len(given)} such bands from "
                f"{given.min():.1f} to {given.max():.1f} nm."
            )
        matched = match_bands(wanted, given, np.full(len(given), self.wavelength_tolerance))
        if (matched < 0).any():
            raise ValueError(describe_shared_band(wanted, given, matched, candidates))
        return candidates[matched].tolist()

    def standardize(
        self, pixels: torch.Tensor, scale: float | None = None, nodata: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Stored numbers of the model's bands (batch, bands, height, width) to standardized float32 values of the same
        shape and a bool mask of valid pixels (batch, height, width), on the device of `pixels`.
        """
        scale = self.scale if scale is None else scale
        nodata = self.nodata if nodata is None else nodata
        check_scale(scale)
        check_number("nodata", nodata)
        valid = holds_data(pixels, nodata).all(dim=1)
        values = self.from_reflectance(pixels.float() / scale)
        return values.masked_fill(~valid.unsqueeze(1), 0.0), valid

    def from_reflectance(self, reflectance: torch.Tensor) -> torch.Tensor:
        """Reflectance (..., bands, height, width), float32, to standardized values."""
        values = reflectance.clamp(*self.clip_range)
        if self.image_mean is not None:
            values = values - self.band_tensor(self.image_mean, values.device)
        if self.image_std is not None:
            values = values / self.band_tensor(self.image_std, values.device)
        return values

    def to_reflectance(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Standardized values (..., bands, height, width) back to reflectance."""
        if self.image_std is not None:
            pixel_values = pixel_values * self.band_tensor(self.image_std, pixel_values.device)
        if self.image_mean is not None:
            pixel_values = pixel_values + self.band_tensor(self.image_mean, pixel_values.device)
        return pixel_values

    @staticmethod
    def band_tensor(values: Sequence[float], device: torch.device) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def as_numbers(image: Any) -> torch.Tensor:
    """
    An image, or a batch, as a tensor of a type that torch computes with: any byte order and strides of NumPy arrays,
    masked pixels as NaN, unsigned numbers in a wider type; gradients are not followed.

    Raises:
        ValueError: it holds something else than real numbers.
    """
    if isinstance(image, torch.Tensor):
        tensor = image.detach()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"Expected an image of real numbers, got {tensor.dtype}.")
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
    if isinstance(image, np.ma.MaskedArray):
        array = np.ma.filled(image if image.dtype.kind == "f" else image.astype(np.float32), np.nan)
    else:
        array = np.asarray(image)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"Expected an image of numbers, got an array of {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int32 if array.dtype.itemsize == 2 else np.int64)
    if array.dtype.itemsize == 2 and array.dtype.kind == "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float32)
    return torch.as_tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def holds_data(pixels: torch.Tensor, nodata: float | None) -> torch.Tensor:
    """True where stored numbers are neither nodata nor NaN or infinity."""
    if pixels.is_floating_point():
        valid = pixels.isfinite()
        return valid if nodata is None else valid & (pixels != nodata)
    limits = torch.iinfo(pixels.dtype)
    # torch would take a number beyond the type's range modulo that: -32768 for 0, where a pixel is 8 bits
    if nodata is None or not limits.min <= nodata <= limits.max:
        return torch.ones_like(pixels, dtype=torch.bool)
    return pixels != nodata


def check_number(name: str, value: Any, finite: bool = False) -> None:
    """Raises ValueError where an argument is no number, or no finite one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")
    if finite and not np.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")


def check_scale(scale: Any, name: str = "scale") -> None:
    """Raises ValueError where a scale is no positive number."""
    check_number(name, scale, finite=True)
    if scale <= 0:
        raise ValueError(f"`{name}` must be positive, got {scale}.")


def check_stored(pixels: torch.Tensor, scale: float, nodata: float | None, brightest: float) -> None:
    """
    Raises ValueError where stored numbers and `scale` do not belong together, so that every spectrum would come out
    black, or most of them white: fractions under a scale of thousands, or ten times `brightest`, a reflectance.
    """
    check_scale(scale)
    sample = pixels.flatten()[:: max(1, pixels.numel() // 2**20)]
    sample = sample[holds_data(sample, nodata)]
    if not len(sample):
        return
    highest = float(sample.max())
    if (pixels.is_floating_point() and 0 < highest <= 1.5 and scale > 100) or (
        (sample > 10 * brightest * scale).double().mean() > 0.5
    ):
        raise ValueError(
            f"Expected stored numbers of which `scale` {scale:g} means a reflectance of 1, got numbers up to "
            f"{highest:g}: give the `scale` of these, 1 for reflectance from 0 to 1."
        )
    if 0 < highest < 0.01 * scale:
        logger.warning_once(f"No reflectance above {highest / scale:.2g}: give `scale=100` if these are percent.")


def as_list(name: str, values: Any) -> list[Any]:
    """The numbers of a list, an array, a tensor or a series as a list, which JSON can hold; ValueError for others."""
    if isinstance(values, (str, bytes)) or np.ndim(values) != 1:
        raise ValueError(f"`{name}` must be a list of numbers, got {values!r}.")
    return values.tolist() if hasattr(values, "tolist") else list(values)


__all__ = ["HSSTImageProcessor"]
