"""What people look at of a mapped scene: a quick look, areas of the classes, and a page that needs no network.

`SceneSummary` gathers reduced images, areas and mean spectra while a scene is predicted part by part; what it keeps
does not grow with the scene.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from rasterio.crs import CRS
from rasterio.warp import transform as transform_coordinates

from datasets_loading.files import write_text
from datasets_loading.scenes import Scene
from datasets_loading.sensors import TRUE_COLOR_WAVELENGTHS
from hsst.support.figures import longest, save_figure, true_color, true_color_bands, with_gaps
from hsst.support.map_writer import NO_CLASS, class_colors
from hsst.support.reports import csv_cell

PAGE = Path(__file__).with_name("scene_page.html")

LARGEST_SIDE = 1024
"""Pixels along the longer side of the reduced images."""

SPECTRUM_PIXELS = 40_000
"""About how many pixels of a scene the mean spectra are taken from."""

EARTH_RADIUS = 6_371_007.0
"""Radius in meters of the sphere with the Earth's surface."""

LONGEST_NAME, MOST_CLASSES = 44, 24
"""Letters of a name of a class, and names, in the quick look."""

TEXT_COLOR = "#2b2d33"
FAINT_COLOR = "#80848e"


class SceneSummary:
    """Areas, reduced images and mean spectra of a mapped scene, gathered part by part.

    Wavelengths are band centers in nm of the pixels given to `update`; metadata are for people. Of every `step`-th
    pixel there are `class_map`, uint8 (height, width), 255 = none, `confidence`, float32 (height, width), NaN = none,
    and `colors`, reflectance shown as red, green and blue, float32 (3, height, width), NaN = none; of each class
    `pixel_counts`, int64 (classes,), and `areas` in square meters, float64 (classes,), or None without georeference.
    """

    def __init__(
        self,
        scene: Scene,
        class_names: Sequence[str],
        wavelengths: Sequence[float] | np.ndarray | None = None,
        model_metadata: Mapping[str, str] | None = None,
    ):
        self.class_names = list(class_names)
        self.colors_of_classes = class_colors(class_names)
        self.name = scene.name
        self.crs, self.transform, self.shape = scene.crs, scene.transform, scene.shape
        self.scene_metadata = dict(scene.metadata)
        self.model_metadata = dict(model_metadata or {})
        self.wavelengths = None if wavelengths is None else np.asarray(wavelengths, dtype=np.float64)
        self._scale, self._nodata = scene.scale, scene.nodata
        height, width = scene.shape
        self.step = max(1, -(-max(height, width) // LARGEST_SIDE))
        reduced = -(-height // self.step), -(-width // self.step)
        self.class_map = np.full(reduced, NO_CLASS, dtype=np.uint8)
        self.confidence = np.full(reduced, np.nan, dtype=np.float32)
        self.colors = np.full((3, *reduced), np.nan, dtype=np.float32)
        self.pixel_counts = np.zeros(len(self.class_names), dtype=np.int64)
        self.confidence_sums = np.zeros(len(self.class_names))
        self._row_areas = pixel_areas(self)
        self.areas = None if self._row_areas is None else np.zeros(len(self.class_names))
        self._spectrum_step = max(1, round((height * width / SPECTRUM_PIXELS) ** 0.5))
        self._spectra: dict[str, np.ndarray] | None = None

    def update(
        self, rows: slice, columns: slice, classes: np.ndarray, confidence: np.ndarray, pixels: np.ndarray
    ) -> None:
        """Takes in a part: classes and confidence (height, width), stored numbers (bands, height, width)."""
        number = len(self.class_names)
        labelled = classes != NO_CLASS
        self.pixel_counts += np.bincount(classes[labelled], minlength=number)
        self.confidence_sums += np.bincount(classes[labelled], weights=confidence[labelled], minlength=number)
        if self.areas is not None and self._row_areas is not None:
            weights = np.broadcast_to(self._row_areas[rows][:, None], classes.shape)
            self.areas += np.bincount(classes[labelled], weights=weights[labelled], minlength=number)

        taken, place = zip(*(kept(part, self.step) for part in (rows, columns)), strict=True)
        self.class_map[place] = classes[taken]
        self.confidence[place] = confidence[taken]
        bands = true_color_bands(self.wavelengths, len(pixels))
        self.colors[(slice(None), *place)] = self._reflectance(pixels[bands][(slice(None), *taken)])
        self._update_spectra(rows, columns, classes, pixels)

    def _update_spectra(self, rows: slice, columns: slice, classes: np.ndarray, pixels: np.ndarray) -> None:
        taken = tuple(kept(part, self._spectrum_step)[0] for part in (rows, columns))
        sampled = classes[taken].ravel()
        reflectance = self._reflectance(pixels[(slice(None), *taken)]).reshape(len(pixels), -1).astype(np.float64)
        if self._spectra is None:
            shape = len(self.class_names), len(pixels)
            self._spectra = {name: np.zeros(shape) for name in ("count", "sum", "square")}
        for number in np.unique(sampled[sampled != NO_CLASS]):
            values = reflectance[:, sampled == number]
            self._spectra["count"][number] += np.isfinite(values).sum(axis=1)
            self._spectra["sum"][number] += np.nansum(values, axis=1)
            self._spectra["square"][number] += np.nansum(values**2, axis=1)

    def _reflectance(self, pixels: np.ndarray) -> np.ndarray:
        reflectance = pixels.astype(np.float32) / self._scale
        return np.where(pixels == self._nodata, np.nan, reflectance)

    def spectrum(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation of a class's reflectance, float64 (bands,) each; None without its pixels."""
        if self._spectra is None or not self._spectra["count"][number].all():
            return None
        count = self._spectra["count"][number]
        mean = self._spectra["sum"][number] / count
        return mean, np.sqrt(np.maximum(self._spectra["square"][number] / count - mean**2, 0))

    @property
    def num_mapped(self) -> int:
        """Pixels with a class."""
        return int(self.pixel_counts.sum())

    @property
    def num_pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    def picture(self) -> np.ndarray:
        """True color, (height, width, 4) in 0..1; clear without data."""
        return clear_picture(self.colors, self.class_map != NO_CLASS)

    def map_picture(self) -> np.ndarray:
        """The map in its colors, (height, width, 4) in 0..1; clear without a class."""
        table = np.ones((NO_CLASS + 1, 3))
        table[: len(self.class_names)] = to_rgba_array(self.colors_of_classes)[:, :3]
        return with_transparency(table[self.class_map], self.class_map != NO_CLASS)

    def confidence_picture(self) -> np.ndarray:
        """Confidence from light (certain) to dark (uncertain), (height, width, 4) in 0..1; clear without a class."""
        colored = colormaps["magma"](np.nan_to_num(self.confidence))[..., :3]
        return with_transparency(colored, np.isfinite(self.confidence))

    def rows(self) -> list[dict[str, Any]]:
        """One row for each class: its name, color, pixels, area, share of the mapped area, mean confidence."""
        rows = []
        amounts = self.pixel_counts if self.areas is None else self.areas
        for number, name in enumerate(self.class_names):
            pixels = int(self.pixel_counts[number])
            area = None if self.areas is None else float(self.areas[number])
            rows.append(
                {
                    "class": number,
                    "name": name,
                    "color": self.colors_of_classes[number],
                    "pixels": pixels,
                    "area_ha": None if area is None else round(area / 1e4, 4),
                    "area_km2": None if area is None else round(area / 1e6, 6),
                    "share": round(float(amounts[number] / amounts.sum()), 6) if amounts.sum() else 0.0,
                    "mean_confidence": round(self.confidence_sums[number] / pixels, 4) if pixels else None,
                }
            )
        return rows


def kept(part: slice, step: int) -> tuple[slice, slice]:
    """Every `step`-th pixel of an axis: which of a part of it, counted from its start, and where they go."""
    return slice(-part.start % step, None, step), slice(-(-part.start // step), -(-part.stop // step))


def with_transparency(colors: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Colors (height, width, 3) with a fourth channel; all are 0 where nothing is visible."""
    return np.where(visible[..., None], np.dstack([colors, visible]), 0.0)


def clear_picture(colors: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """
    Reflectance of red, green and blue (3, height, width) as a picture (height, width, 4) in 0..1, clear where it is
    NaN. Clouds would leave the land black: where enough pixels are mapped (height, width), these alone set the limits.
    """
    visible = np.asarray(np.isfinite(colors).all(axis=0))
    if not visible.any():
        return np.zeros((*visible.shape, 4))
    limits = None
    if np.count_nonzero(visible & mapped) > 100:
        limits = true_color(colors[:, mapped][:, None], TRUE_COLOR_WAVELENGTHS)[1]
    return with_transparency(true_color(colors, TRUE_COLOR_WAVELENGTHS, limits)[0], visible)


def pixel_areas(summary: SceneSummary) -> np.ndarray | None:
    """
    Area in square meters of a pixel in each row, float64 (height,); None without georeference on Earth. It is that of
    the map's plane where this is right to half a percent, as in UTM, else that on the ground, in the middle column.
    """
    if summary.transform is None or summary.crs is None or not (summary.crs.is_geographic or summary.crs.is_projected):
        return None
    transform, crs, (height, width) = summary.transform, summary.crs, summary.shape
    corners = np.array([[0, 1, 1, 0], [0, 0, 1, 1]])[:, :, None] + np.array([0, 1])[:, None, None] * np.arange(height)
    columns, rows = corners[0] + (width - 1) / 2, corners[1]
    x = transform.c + transform.a * columns + transform.b * rows
    y = transform.f + transform.d * columns + transform.e * rows
    in_units = abs(transform.a * transform.e - transform.b * transform.d)
    in_plane = None if crs.is_geographic else np.full(height, in_units * float(crs.linear_units_factor[1]) ** 2)
    try:
        (longitude,), (latitude,) = transform_coordinates(crs, "EPSG:4326", [x.mean()], [y.mean()])[:2]
        # The ground around the scene in a projection that keeps areas
        plane = CRS.from_dict(proj="laea", lon_0=longitude, lat_0=latitude, ellps="WGS84")
        east, north = np.reshape(transform_coordinates(crs, plane, x.ravel(), y.ravel())[:2], (2, *x.shape))
    except Exception:  # GDAL's, of no public class: coordinates that lie nowhere on Earth
        return in_plane
    across, along = (np.array([side[2] - side[0], side[3] - side[1]]) for side in (east, north))
    on_ground = np.abs(across[0] * along[1] - across[1] * along[0]) / 2
    if in_plane is not None and (np.allclose(in_plane, on_ground, rtol=0.005) or not np.isfinite(on_ground).all()):
        return in_plane
    return on_ground


def pixel_size(summary: SceneSummary) -> float | None:
    """Width of a pixel in meters in the middle of the scene; None without georeference."""
    areas = pixel_areas(summary)
    if areas is None or summary.transform is None:
        return None
    transform = summary.transform
    middle = float(areas[len(areas) // 2])
    if summary.crs is not None and summary.crs.is_geographic:
        return middle / float(np.radians(np.hypot(transform.b, transform.e)) * EARTH_RADIUS)
    ratio = abs(np.hypot(transform.a, transform.d) / np.hypot(transform.b, transform.e))
    return float(np.sqrt(middle * ratio))


def length_text(meters: float) -> str:
    return f"{meters / 1000:g} km" if meters >= 1000 else f"{meters:g} m"


def share_text(share: float) -> str:
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def amount_text(row: Mapping[str, Any]) -> str:
    """Area of a class, in km2 from 1 km2 on, else in ha; or its pixels without georeference."""
    if row["area_km2"] is None:
        return f"{row['pixels']:,} px"
    # From square meters: 100 times the 0.0045 km² of five pixels is less than 0.45 ha, and would be rounded down
    square_meters = row["area_km2"] * 1e6
    return f"{square_meters / 1e6:,.1f} km²" if square_meters >= 1e6 else f"{square_meters / 1e4:,.1f} ha"


def write_areas(path: Path, summary: SceneSummary) -> None:
    """Writes pixels and area of every class as CSV."""
    rows = summary.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "name": csv_cell(row["name"])} for row in rows)
    write_text(path, text.getvalue())


def write_areas_json(path: Path, summary: SceneSummary, checksums: Mapping[str, str]) -> None:
    """Writes pixels and area of every class, what the scene and the model are, and SHA-256 of the files beside."""
    content = {
        "scene": summary.name,
        "crs": None if summary.crs is None else summary.crs.to_string(),
        "height": summary.shape[0],
        "width": summary.shape[1],
        "pixels_without_class": summary.num_pixels - summary.num_mapped,
        "scene_metadata": summary.scene_metadata,
        "model_metadata": summary.model_metadata,
        "classes": summary.rows(),
        "files": dict(checksums),
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def plot_quick_look(path: Path, summary: SceneSummary) -> None:
    """Draws true color, the map, its confidence and the areas of the classes side by side, and saves them as PNG."""
    height, width = summary.class_map.shape
    present = [shortened(row["name"], LONGEST_NAME) for row in summary.rows() if row["pixels"]]
    panel, legend = 4.9, 2.2 + max(longest(present, 10), 2.0)
    # As high as the pictures, and the lines of the legend
    inside = max(panel * min(height / width, 2.2), 0.32 * (min(len(present), MOST_CLASSES) + 3), 1.8)
    figure = Figure(figsize=(3 * panel + legend, inside + 1.4), facecolor="white")
    total_width, total_height = figure.get_size_inches()
    bottom, top, gap = 0.62 / total_height, 1 - 0.8 / total_height, 0.16
    axes = [
        figure.add_axes(((gap + number * panel) / total_width, bottom, (panel - gap) / total_width, top - bottom))
        for number in range(3)
    ]
    pictures = (
        (summary.picture(), "true color"),
        (summary.map_picture(), "land cover"),
        (summary.confidence_picture(), "confidence (probability of the class)"),
    )
    for axis, (picture, label) in zip(axes, pictures, strict=True):
        axis.set_facecolor("#eef0f3")
        axis.imshow(picture, interpolation="nearest" if max(height, width) < 300 else "antialiased")
        axis.set_title(label, fontsize=11, color=TEXT_COLOR, loc="left", pad=5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_edgecolor("#c9ccd3")
    if min(height, width) * min((panel - gap) / width, inside / height) > 0.9:  # inches, else they would hide it
        draw_scale_bar(axes[0], summary)
        draw_north(axes[0], summary)
    left = (gap + 2 * panel + 0.6 * (panel - gap)) / total_width
    bar = figure.add_axes((left, bottom - 0.13 / total_height, 1.9 / total_width, 0.09 / total_height))
    color_bar = figure.colorbar(ScalarMappable(cmap="magma"), cax=bar, orientation="horizontal")
    color_bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.tick_params(labelsize=8, length=2, pad=1.5, colors=TEXT_COLOR)
    color_bar.outline.set_visible(False)

    left = (3 * panel + 0.3) / total_width
    draw_areas(figure.add_axes((left, bottom, (legend - 0.5) / total_width, top - bottom)), summary)
    title_style: dict[str, Any] = {"fontsize": 13, "weight": "bold", "color": TEXT_COLOR}
    figure.text(gap / total_width, 1 - 0.36 / total_height, summary.name, **title_style)
    facts = [f"{key} {value}" for key, value in {**summary.scene_metadata, **summary.model_metadata}.items()]
    facts = [fact for fact in facts if not fact.startswith(("product", "file", "bands"))]
    about = shortened("  ·  ".join([where_text(summary), *facts]), 300)
    figure.text(gap / total_width, 0.17 / total_height, about, fontsize=8.5, color=FAINT_COLOR)
    save_figure(path, figure, dpi=120)


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def where_text(summary: SceneSummary) -> str:
    """Size, and place where it is known."""
    height, width = summary.shape
    size = pixel_size(summary)
    text = f"{width:,} x {height:,} pixels"
    if size is None:
        return text + ", no georeference"
    name = summary.crs.to_string() if summary.crs is not None else ""
    name = name if len(name) < 30 else "own coordinate system"
    return f"{text} of {size:.3g} m  ·  {name}"


def left_out(summary: SceneSummary) -> str:
    """Which pixels have no class."""
    return summary.model_metadata.get("left out", "pixels without data")


def draw_areas(axis: Axes, summary: SceneSummary) -> None:
    """A bar for each class that occurs, largest first, which is the legend of the map, too."""
    rows = sorted((row for row in summary.rows() if row["pixels"]), key=lambda row: -row["share"])
    axis.axis("off")
    if not rows:
        axis.text(0, 1, "no pixel has a class", fontsize=11, color=TEXT_COLOR, va="top")
        return
    shown, rest = rows[:MOST_CLASSES], rows[MOST_CLASSES:]
    absent = [row["name"] for row in summary.rows() if not row["pixels"]]
    largest = shown[0]["share"]
    lines = max(len(shown) + (1 if rest else 0), 9)
    axis.set_xlim(0, 1)
    axis.set_ylim(lines + (1.8 if absent else 1.4), -0.35)
    for line, row in enumerate(shown):
        axis.barh(line + 0.62, max(row["share"] / largest, 0.004), height=0.3, color=row["color"], align="center")
        axis.text(0, line + 0.3, shortened(row["name"], LONGEST_NAME), fontsize=10, color=TEXT_COLOR, va="center")
        amount = f"{amount_text(row)}   {share_text(row['share'])}"
        axis.text(1, line + 0.3, amount, fontsize=10, color=TEXT_COLOR, ha="right", va="center")
    if rest:
        share = sum(row["share"] for row in rest)
        axis.text(0, len(shown) + 0.3, f"{len(rest)} more classes, {share:.1%}", fontsize=9, color=FAINT_COLOR)
    mapped = summary.num_mapped / summary.num_pixels
    notes = [f"{mapped:.1%} of the raster mapped", f"pale gray: {left_out(summary)}"]
    notes += [f"not found: {', '.join(absent)}"] if absent else []
    for number, note in enumerate(notes):
        place = lines + 0.6 + 0.45 * number
        axis.text(0, place, shortened(note, 56), fontsize=8.5, color=FAINT_COLOR, va="center")


def scale_bar_length(width_in_meters: float) -> float:
    """A round length in meters of about a quarter of a width."""
    power = 10.0 ** np.floor(np.log10(width_in_meters / 4))
    return float(power * max(factor for factor in (1, 2, 5) if factor * power <= width_in_meters / 4))


def draw_scale_bar(axis: Axes, summary: SceneSummary) -> None:
    size = pixel_size(summary)
    if size is None:
        return
    height, width = summary.class_map.shape
    meters = scale_bar_length(size * summary.step * width)
    pixels = meters / (size * summary.step)
    x, y = 0.04 * width, 0.955 * height
    axis.plot([x, x + pixels], [y, y], color="white", lw=7, solid_capstyle="butt", alpha=0.8)
    axis.plot([x, x + pixels], [y, y], color=TEXT_COLOR, lw=3.5, solid_capstyle="butt")
    outline = {"boxstyle": "round,pad=0.22", "fc": (1, 1, 1, 0.78), "ec": "none"}
    place: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "left", "va": "bottom"}
    axis.annotate(length_text(meters), (x, y), fontsize=9, color=TEXT_COLOR, bbox=outline, **place)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def draw_north(axis: Axes, summary: SceneSummary) -> None:
    """An arrow to grid north, the direction in which the second coordinate grows."""
    if summary.transform is None:
        return
    inverse = ~summary.transform
    column, row = inverse.b, inverse.e  # pixels for one unit north
    length = np.hypot(column, row)
    column, row = column / length, row / length
    north = axis.annotate(
        "N",
        xy=(0.935 + 0.05 * column, 0.9 - 0.065 * row),
        xytext=(0.935 - 0.03 * column, 0.9 + 0.04 * row),
        xycoords="axes fraction",
        textcoords="axes fraction",
        ha="center",
        va="center",
        fontsize=10,
        weight="bold",
        color=TEXT_COLOR,
        bbox={"boxstyle": "circle,pad=0.25", "fc": (1, 1, 1, 0.82), "ec": "none"},
        arrowprops={"arrowstyle": "-|>", "color": TEXT_COLOR, "lw": 2.2},
    )
    if north.arrow_patch is not None:  # seen on dark ground, too
        north.arrow_patch.set_path_effects([withStroke(linewidth=5, foreground="white")])


def png_address(picture: np.ndarray) -> str:
    """A picture (height, width, 4) in 0..1 as a data address with a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8), "RGBA").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def spectrum_address(summary: SceneSummary, number: int) -> str | None:
    """Mean spectrum of a class, with its standard deviation, as a data address with an SVG; None without pixels."""
    found = summary.spectrum(number)
    if found is None:
        return None
    mean, deviation = found
    x_values = np.arange(len(mean)) if summary.wavelengths is None else summary.wavelengths
    order = np.argsort(x_values)
    x_values, mean, deviation = x_values[order], mean[order], deviation[order]
    figure = Figure(figsize=(4.9, 2.5), layout="constrained")
    axis, color = figure.subplots(), summary.colors_of_classes[number]
    places, low = with_gaps(x_values, mean - deviation)
    axis.fill_between(places, low, with_gaps(x_values, mean + deviation)[1], color=color, alpha=0.25, lw=0)
    axis.plot(*with_gaps(x_values, mean), color=color, lw=3)
    axis.plot(*with_gaps(x_values, mean), color=TEXT_COLOR, lw=0.7)
    axis.set_ylim(min(0.0, float(axis.get_ylim()[0])), None)
    axis.set_ylabel("reflectance", fontsize=9)
    axis.set_xlabel("band" if summary.wavelengths is None else "wavelength (nm)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "spectrum"}):  # or its names would be random
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, summary: SceneSummary) -> None:
    """Writes a page in HTML that holds everything it shows: it opens from disk, without a network."""
    rows = sorted(summary.rows(), key=lambda row: -row["share"])
    present = [row for row in rows if row["pixels"]]
    largest = present[0]["share"] if present else 1.0
    legend = "\n".join(_legend_row(row, largest) for row in present)
    absent = ", ".join(row["name"] for row in rows if not row["pixels"])
    classes = {
        str(row["class"]): {
            "name": row["name"],
            "color": row["color"],
            "amount": amount_text(row),
            "share": share_text(row["share"]),
            "confidence": f"{row['mean_confidence']:.2f}",
            "spectrum": spectrum_address(summary, row["class"]),
        }
        for row in present
    }
    # In steps of 1/100: what a click on the map tells
    certainty = np.rint(np.nan_to_num(summary.confidence, nan=2.55) * 100)
    zeros = np.zeros_like(certainty)
    lookup = np.dstack([summary.class_map / 255, certainty / 255, zeros, zeros + 1])
    text = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(summary.name),
        where=html.escape(where_text(summary)),
        mapped=f"{summary.num_mapped / summary.num_pixels:.1%}",
        picture=png_address(summary.picture()),
        map=png_address(summary.map_picture()),
        confidence=png_address(summary.confidence_picture()),
        lookup=png_address(lookup),
        width=summary.class_map.shape[1],
        height=summary.class_map.shape[0],
        legend=legend or "<tr><td>no pixel has a class</td></tr>",
        absent=f'<p class="faint">Clear: no class ({html.escape(left_out(summary))}).</p>'
        + (f'<p class="faint">Not found: {html.escape(absent)}.</p>' if absent else ""),
        scale_bar=_scale_bar(summary),
        scene_facts=_facts({**summary.scene_metadata, "raster": where_text(summary)}),
        model_facts=_facts(summary.model_metadata),
        classes=json.dumps(classes).replace("<", "\\u003c"),
        first=present[0]["class"] if present else -1,
    )
    write_text(path, text)


def _legend_row(row: Mapping[str, Any], largest: float) -> str:
    width = max(100 * row["share"] / largest, 0.8)
    return (
        f'<tr data-class="{row["class"]}" tabindex="0"><td><i style="background:{row["color"]}"></i>'
        f'{html.escape(row["name"])}</td><td class=bar><b style="width:{width:.1f}%;background:{row["color"]}"></b>'
        f"</td><td>{amount_text(row)}</td><td>{html.escape(share_text(row['share']))}</td></tr>"
    )


def _scale_bar(summary: SceneSummary) -> str:
    """With an arrow to north; nothing without georeference."""
    size = pixel_size(summary)
    if size is None or summary.transform is None:
        return ""
    meters = scale_bar_length(size * summary.shape[1])
    share = 100 * meters / (size * summary.shape[1])
    inverse = ~summary.transform
    angle = np.degrees(np.arctan2(inverse.b, -inverse.e))
    return (
        f'<div class="scale" style="width:{share:.2f}%"><span>{length_text(meters)}</span></div>'
        f'<svg class="north" viewBox="-20 -20 40 40" style="transform:rotate({angle:.1f}deg)"><circle r="19"/>'
        '<path d="M0-15 7 6 0 2-7 6Z"/><text y="16" text-anchor="middle">N</text></svg>'
    )


def _facts(metadata: Mapping[str, str]) -> str:
    return "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in metadata.items())
