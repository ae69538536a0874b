"""What correction of the atmosphere leaves over, as an augmentation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hsst.support.augmentations import CorrectionErrors
from hsst.support.fine_tuning import AreaTensors, WindowCollator
from hsst.support.training_settings import FineTuningSettings

WAVELENGTHS = np.linspace(420.0, 2450.0, 30)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_path_radiance_is_light_of_short_wavelengths() -> None:
    factor, added = CorrectionErrors(WAVELENGTHS, 0.01, 0.0).draw(4000, generator())
    assert torch.equal(factor, torch.ones_like(factor))
    assert (added.sign() == added[:, :1].sign()).all()  # added in all bands, or taken away
    assert (added.abs().diff(dim=1) < 0).all()
    at_550 = np.abs(WAVELENGTHS - 550).argmin()
    assert added[:, at_550].std().item() == pytest.approx(0.01, rel=0.1)
    assert added.mean(dim=0).abs().max() < 0.001


def test_calibration_is_a_factor_that_changes_slowly_along_the_spectrum() -> None:
    factor, added = CorrectionErrors(WAVELENGTHS, 0.0, 0.05).draw(4000, generator())
    assert not added.any()
    assert factor.mean().item() == pytest.approx(1.0, abs=0.01)
    assert 0.05 < factor.std(dim=0).min() and factor.std(dim=0).max() < 0.075
    correlation = np.corrcoef(factor.numpy().T)
    assert correlation[0, 1] > 0.85 and correlation[0, -1] == pytest.approx(0.5, abs=0.05)


def test_one_band_and_factors_that_stay_positive() -> None:
    factor, added = CorrectionErrors([550.0], 0.01, 0.05).draw(5, generator())
    assert factor.shape == added.shape == (5, 1) and torch.isfinite(factor + added).all()
    factor, _ = CorrectionErrors(WAVELENGTHS, 0.0, 1.0).draw(100, generator())
    assert factor.min() > 0


@pytest.fixture
def area() -> AreaTensors:
    mean, deviation = torch.full((30,), 0.2), torch.linspace(0.05, 0.1, 30)
    reflectance = torch.rand((30, 24, 24), generator=generator())
    mask = torch.ones((24, 24), dtype=torch.bool)
    mask[:, :3] = False
    values = ((reflectance - mean[:, None, None]) / deviation[:, None, None]).masked_fill(~mask, 0.0)
    labels = torch.zeros((24, 24), dtype=torch.int64)
    return AreaTensors(None, "train", 5, [values], [mask], [labels], [mask], [(0, 0, 0)], mean, deviation, WAVELENGTHS)


def test_windows_of_a_batch_have_errors_of_their_own(area) -> None:
    corners = [torch.tensor([0, row, row]) for row in range(16)]
    plain = WindowCollator(area, FineTuningSettings())(corners)
    assert torch.equal(plain["pixel_values"], area.windows(torch.stack(corners), "dense")["pixel_values"])
    changed = WindowCollator(area, FineTuningSettings(path_radiance=0.02, calibration=0.1))(corners)
    before, after = (
        batch["pixel_values"] * area.deviation[:, None, None] + area.mean[:, None, None] for batch in (plain, changed)
    )
    valid = plain["pixel_mask"]
    assert not changed["pixel_values"].masked_fill(valid.unsqueeze(1), 0.0).any()
    for window in range(16):
        # A straight line for each band of each window, from reflectance before to reflectance after
        x, y = before[window][:, valid[window]].double(), after[window][:, valid[window]].double()
        slope = (x - x.mean(1, keepdim=True)).mul(y).sum(1) / (x - x.mean(1, keepdim=True)).square().sum(1)
        added = y.mean(1) - slope * x.mean(1)
        torch.testing.assert_close(slope[:, None] * x + added[:, None], y, atol=1e-5, rtol=0)
        assert 0.3 < slope.min() and slope.max() < 1.7 and added.abs().min() > 0
    assert (after - before).flatten(2).std(dim=0).min() > 0


def test_scenes_without_wavelengths_are_refused(area) -> None:
    area = replace(area, wavelengths=None)
    WindowCollator(area, FineTuningSettings())
    for name in ("path_radiance", "calibration"):
        with pytest.raises(ValueError, match="expected scenes with wavelengths, got none"):
            WindowCollator(area, FineTuningSettings(**{name: 0.01}))
        with pytest.raises(ValueError, match=f"{name}: expected at least 0"):
            FineTuningSettings(**{name: -0.01})
