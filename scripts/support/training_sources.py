"""Where training pixels come from, and whether weights that were trained on them may be published, with the reason.

Conservative: what states no terms, or terms that do not plainly allow it, is left out. Cards are made from this list,
and `publish.py` refuses a card that names another source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSource:
    """One source of pixels.

    Attributes:
        title: what it is.
        terms: under which terms it comes.
        publishable: whether weights trained on it are published.
        reason: why, or why not.
        attribution: how to name it where it was used, or "".
    """

    title: str
    terms: str
    publishable: bool
    reason: str
    attribution: str = ""


TRAINING_SOURCES: dict[str, TrainingSource] = {
    "simulated": TrainingSource(
        title="Simulated EnMAP products (`scripts/simulate_enmap.py`)",
        terms="made by this project's own code, Apache-2.0",
        publishable=True,
        reason="No pixel of anybody else is in them: spectra come from published physical models and numbers.",
    ),
    "neon": TrainingSource(
        title="NEON airborne reflectance, forest plots of IDTReeS 2020 and crops of Harvard Forest and San Joaquin, "
        "resampled to EnMAP's bands (`scripts/resample_spectra.py`)",
        terms="NEON data products: CC0 1.0 or, later, CC BY 4.0; IDTReeS 2020: CC BY",
        publishable=True,
        reason="Both licences allow use and adaptation for any purpose; what they ask for is to be named.",
        attribution="Data of the National Ecological Observatory Network (NEON), a programme of the U.S. National "
        "Science Foundation operated by Battelle, and of the IDTReeS 2020 competition (Graves et al.); both were "
        "changed by resampling. Neither endorses this model.",
    ),
    "enmap": TrainingSource(
        title="EnMAP L2A products, the tiles of Potsdam among them",
        terms="(c) DLR; free registration; may not be published again as they are",
        publishable=False,
        reason="The terms do not say what weights that were fitted to the pixels are, and weights can keep parts of "
        "what they were trained on. The tiles of Potsdam are needed as a test that was never seen, besides. "
        "They are read to measure, and pictures of results are shown with the name of their owner.",
    ),
    "aviris": TrainingSource(
        title="AVIRIS scenes: Jasper Ridge, Salton Sea, Salinas",
        terms="none stated with the files",
        publishable=False,
        reason="Without terms there is no permission. They may serve as test scenes.",
    ),
}


def publishable_sources() -> list[str]:
    """Names of the sources that published weights may be trained on."""
    return [name for name, source in TRAINING_SOURCES.items() if source.publishable]


def check_sources(names: Sequence[str], where: str) -> None:
    """Checks that weights trained on these sources may be published.

    Args:
        names: keys of `TRAINING_SOURCES`.
        where: the argument or file that names them, for the error.

    Raises:
        ValueError: there is none, or one is unknown or may not be used.
    """
    if not names:
        raise ValueError(f"{where}: expected the sources of the training pixels, got none")
    for name in names:
        if name not in TRAINING_SOURCES:
            raise ValueError(f"{where}: expected sources among {', '.join(TRAINING_SOURCES)}, got {name}")
        if not TRAINING_SOURCES[name].publishable:
            raise ValueError(
                f"{where}: expected sources among {', '.join(publishable_sources())}, got {name}: "
                f"{TRAINING_SOURCES[name].terms}. {TRAINING_SOURCES[name].reason}"
            )


def sources_table(used: Sequence[str] | None = None) -> str:
    """Markdown: every source with its terms and the decision; with `used`, also whether these weights saw it."""
    columns = ["source", "terms", "weights may be published", "why"]
    columns = columns[:2] + ["used here"] + columns[2:] if used is not None else columns
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for name, source in TRAINING_SOURCES.items():
        cells = [source.title, source.terms]
        cells += ["yes" if name in used else "no"] if used is not None else []
        cells += ["yes" if source.publishable else "**no**", source.reason]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
