"""What the table of EnMAP's bands must say."""

from __future__ import annotations

from itertools import pairwise

import pytest

from datasets_loading.sensors import (
    ENMAP,
    ENMAP_DETECTORS,
    ENMAP_WATER_VAPOUR_BANDS,
    PUBLISHED_ENMAP_BANDS,
    Sensor,
)


def test_enmap_has_91_vnir_and_133_swir_bands_in_ascending_wavelength():
    assert ENMAP.num_bands == len(ENMAP.fwhm) == len(ENMAP_DETECTORS) == 224
    assert ENMAP_DETECTORS.count("VNIR") == 91
    assert ENMAP_DETECTORS.count("SWIR") == 133
    assert list(ENMAP.wavelengths) == sorted(ENMAP.wavelengths)
    assert (ENMAP.wavelengths[0], ENMAP.wavelengths[-1]) == (418.24, 2445.53)


def test_enmap_detectors_cover_their_ranges_with_smooth_sampling():
    ranges = {"VNIR": (418.24, 993.083), "SWIR": (902.257, 2445.53)}
    for detector, (first, last) in ranges.items():
        centers = [w for w, d in zip(ENMAP.wavelengths, ENMAP_DETECTORS, strict=True) if d == detector]
        assert (centers[0], centers[-1]) == (first, last)
        steps = [following - previous for previous, following in pairwise(centers)]
        assert min(steps) > 4.5
        # The two water vapour windows that no product carries, near 1.4 and 1.8 micrometers, are the only gaps.
        assert sum(step > 13 for step in steps) == (2 if detector == "SWIR" else 0)


def test_published_bands_leave_out_water_vapour_and_two_more():
    assert len(ENMAP_WATER_VAPOUR_BANDS) == 22
    assert len(PUBLISHED_ENMAP_BANDS) == 200
    assert not set(PUBLISHED_ENMAP_BANDS) & set(ENMAP_WATER_VAPOUR_BANDS)
    left_out = sorted(set(range(224)) - set(PUBLISHED_ENMAP_BANDS) - set(ENMAP_WATER_VAPOUR_BANDS))
    assert [ENMAP.wavelengths[band] for band in left_out] == [2266.04, 2274.18]
    vapour = [ENMAP.wavelengths[band] for band in ENMAP_WATER_VAPOUR_BANDS]
    assert (vapour[0], vapour[14], vapour[15], vapour[-1]) == (1295.28, 1519.22, 1738.93, 1967.95)


def test_sensor_rejects_unsorted_wavelengths_and_missing_widths():
    with pytest.raises(ValueError, match="ascending order"):
        Sensor("two", wavelengths=(500.0, 400.0), fwhm=(5.0, 5.0))
    with pytest.raises(ValueError, match="2 wavelengths and 1 widths"):
        Sensor("two", wavelengths=(400.0, 500.0), fwhm=(5.0,))
