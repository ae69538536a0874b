"""A page to look into hyperspectral scenes with HSST: spectra, features, similar pixels, land cover.

    python spaces/app.py --port 7860

What the page shows of a scene is computed once and kept; a click only looks it up. Scenes are three simulated ones, or
files of visitors. docs/manual/space.md says how to publish the page as a Space of Hugging Face.
"""

from __future__ import annotations

import argparse
import html
import os
import shutil
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# What is shown stays here: nothing is reported to Gradio or the Hub
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from hsst import missing_package

try:
    import gradio as gr
except ModuleNotFoundError as error:  # of the extra for the page; before what takes seconds to import
    print(f"app.py: error: {missing_package(error) or error}", file=sys.stderr)
    raise SystemExit(2) from None

from transformers.utils import logging as transformers_logging

from datasets_loading.files import only_writer
from datasets_loading.simulation.scene import simulate_scene, write_scene
from hsst.support import explored_scene
from hsst.support.choices import published_model
from hsst.support.command_line import one_line_errors, shown
from hsst.support.explored_scene import Explored, Models, Report, explore, load_models
from hsst.support.uploads import LARGEST_UPLOAD, gather_upload, open_checked, without_folder

EXAMPLES = {"Fields": 3, "Lakes and forest": 11, "City and river": 5}
"""Seeds of the simulated scenes."""

EXAMPLE_SIDE = 128
KEPT_SCENES = 4
PICTURES = {
    "true color": "at 640, 550 and 460 nm",
    "features": "three main directions as colors",
    "similar pixels": "unlike<span></span>like the pixel",
    "land cover": "the most probable class",
}
"""What is shown of a scene, with a caption each."""

STYLE = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; }
#status { font-size: 0.85rem; overflow-wrap: anywhere; }
.caption { display: flex; align-items: center; gap: 0.5rem; font-size: 0.85rem; opacity: 0.8; }
.caption span { flex: 1; height: 0.7rem; border-radius: 2px;
  background: linear-gradient(to right, #000004, #420a68, #932667, #dd513a, #fca50a, #fcffa4); }
.legend { border-collapse: collapse; width: 100%; font-size: 0.85rem; margin: 0 !important; border: 0 !important; }
.legend tr, .legend td { padding: 1px 5px !important; border: 0 !important; }
.legend td:nth-child(n+3) { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (max-width: 700px) {
  #spectrum { contain: inline-size; }
  #spectrum .layout { overflow-x: auto; }
  #spectrum img { min-width: 700px; }
}
.legend span { display: inline-block; width: 1rem; height: 1rem; border-radius: 2px; vertical-align: middle; }
"""
ABOUT = """# HSST: what a model sees in a hyperspectral image
Click on a pixel: the plot shows its spectrum, and how the model fills in the bands that were hidden from it. Pixels
whose features are similar light up."""


def example_scene(name: str, cache: Path, side: int = EXAMPLE_SIDE) -> Path:
    """The product of a simulated scene, made where it is not in the cache yet."""
    folder = cache / f"{name.lower().replace(' ', '_')}_{side}"
    with only_writer(folder):
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if found:
            return found[0]
        clear: dict[str, Any] = {"cloud_cover": 0.0, "haze_cover": 0.0, "cirrus_cover": 0.0}
        return write_scene(simulate_scene(side, side, seed=EXAMPLES[name], swath=False, **clear), folder)


def message_of(error: BaseException) -> str:
    """One line of HTML about an error."""
    return html.escape(shown(str(error) or type(error).__name__))


def answered(answer: Callable[[], list[Any]], count: int) -> list[Any]:
    """The answer for `count` parts of the page; where files are bad, a box with one line, and all parts stay."""
    try:
        return answer()
    except (ValueError, OSError, MemoryError) as error:
        gr.Warning(message_of(error), duration=None)
        return [gr.skip()] * count


class Gallery:
    """
    The scenes that the page shows, the last few of which stay in memory, and simulated ones on the disk as well.

    Args:
        models: the models.
        cache: folder for simulated scenes, what was computed of them, and maps.
        example_side: height and width of the simulated scenes in pixels.
    """

    def __init__(self, models: Models, cache: Path, example_side: int = EXAMPLE_SIDE):
        self.models, self.cache, self.example_side = models, cache, example_side
        self.scenes: OrderedDict[str, Explored] = OrderedDict()
        for left_over in cache.glob("maps/upload_*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def show_example(self, name: str, report: Report) -> str:
        """Key of a simulated scene, which is computed where it is not in the cache."""
        key = f"{name.lower().replace(' ', '_')}_{self.example_side}_{self.models.name}"
        path = self.cache / f"{key}.npz"
        if key not in self.scenes and path.is_file() and self.map_of(key).is_file():
            self._keep(key, explored_scene.load(path))
        if key not in self.scenes:
            with open_checked(example_scene(name, self.cache, self.example_side)) as scene:
                self._keep(key, explore(scene, self.models, self.map_of(key), report))
            explored_scene.save(self.scenes[key], path)
        return key

    def show_files(self, files: Sequence[str | Path] | None, report: Report) -> str:
        """Key of a visitor's scene. Raises ProductError where the files are none, ValueError where no model fits."""
        with tempfile.TemporaryDirectory(prefix="hsst_") as folder, without_folder(Path(folder)):
            with open_checked(gather_upload(files, Path(folder))) as scene:
                key = f"upload_{time.time_ns():x}"
                self._keep(key, explore(scene, self.models, self.map_of(key), report))
        return key

    def map_of(self, key: str) -> Path:
        """The GeoTIFF of a scene's land cover."""
        return self.cache / "maps" / key / "land_cover.tif"

    def __getitem__(self, key: str) -> Explored:
        try:
            self.scenes.move_to_end(key)
            return self.scenes[key]
        except KeyError:
            raise ValueError("This scene is no longer in memory. Please open it again.") from None

    def _keep(self, key: str, explored: Explored) -> None:
        self.scenes[key] = explored
        while len(self.scenes) > KEPT_SCENES:
            dropped, _ = self.scenes.popitem(last=False)
            if dropped.startswith("upload_"):
                shutil.rmtree(self.map_of(dropped).parent, ignore_errors=True)


def view_pixel(explored: Explored, row: int, column: int) -> list[Any]:
    """The four pictures (`PICTURES`) with the pixel marked, its spectrum, and a line about it."""
    similar = explored_scene.similarity_picture(explored, row, column)
    true_color, features, land_cover = explored.pictures
    pictures = [
        explored_scene.marked(picture, explored, row, column)
        for picture in (true_color, features, similar, land_cover)
    ]
    return [
        *pictures,
        explored_scene.plot_pixel(explored, row, column),
        explored_scene.describe_pixel(explored, row, column),
    ]


def build_page(gallery: Gallery) -> gr.Blocks:
    """The page."""

    def opened(key: str, example_name: str | None) -> list[Any]:
        explored = gallery[key]
        name, size = (html.escape(str(text)) for text in explored.name)
        view = view_pixel(explored, *explored_scene.first_pixel(explored))
        return [example_name, key, f"<b>{name}</b><br>{size}", *view, str(explored.legend), str(gallery.map_of(key))]

    def show_example(name: str, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        def report(share: float, what: str) -> None:
            progress(share, desc=what)

        return answered(lambda: opened(gallery.show_example(name, report), name), len(outputs))

    def show_files(files: list[str] | None, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        def report(share: float, what: str) -> None:
            progress(share, desc=what)

        return answered(lambda: opened(gallery.show_files(files, report), None), len(outputs))

    def show_pixel(key: str, click: gr.SelectData) -> list[Any]:
        def look() -> list[Any]:
            explored = gallery[key]
            times = explored_scene.enlargement(explored)
            places = zip(click.index[::-1], explored.shape, strict=True)
            row, column = (min(int(place) // times, side - 1) for place, side in places)
            return view_pixel(explored, row, column)

        return answered(look, len(shown_at_click))

    with gr.Blocks(title="HSST", analytics_enabled=False, delete_cache=(3600, 7200)) as page:
        gr.Markdown(ABOUT)
        key = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                example = gr.Radio(list(EXAMPLES), value=next(iter(EXAMPLES)), label="Simulated scenes")
                status = gr.HTML(elem_id="status", padding=False)
            with gr.Column(scale=1, min_width=260):
                label = "Your scene: GeoTIFF, ENVI with header, STAC item"
                files = gr.File(file_count="multiple", label=label, height=150)
                upload = gr.Button("Show my scene", size="sm")
        with gr.Row():
            pictures = []
            for name, caption in PICTURES.items():
                with gr.Column(scale=1, min_width=240):
                    name_of: dict[str, Any] = {"label": name, "elem_id": name.replace(" ", "_")}
                    pictures.append(gr.Image(format="png", interactive=False, buttons=["fullscreen"], **name_of))
                    gr.HTML(f'<div class="caption">{caption}</div>', padding=False)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                text = gr.HTML(elem_id="pixel", padding=False)
                plot = gr.Plot(show_label=False, elem_id="spectrum", format="png")
            with gr.Column(scale=1, min_width=240):
                legend = gr.HTML()
                download = gr.DownloadButton("Download the map (GeoTIFF)", size="sm")
        shown_at_click = [*pictures, plot, text]
        outputs = [example, key, status, *shown_at_click, legend, download]
        waiting: dict[str, Any] = {
            "outputs": outputs,
            "show_progress_on": [pictures[0]],
            "concurrency_id": "models",
            "concurrency_limit": 1,
        }
        page.load(show_example, example, **waiting)
        example.input(show_example, example, **waiting)
        upload.click(show_files, files, **waiting)
        for picture in pictures:
            picture.select(
                show_pixel,
                key,
                shown_at_click,
                show_progress="hidden",
                trigger_mode="multiple",
                concurrency_limit=4,
            )
    return page


def page_theme() -> gr.Theme:
    """A theme with the fonts of the visitor's system: none are fetched."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def default_cache() -> Path:
    """The folder that HSST_SPACE_CACHE names, or one in the home folder."""
    return Path(os.environ.get("HSST_SPACE_CACHE") or "~/.cache/hsst_space").expanduser()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)), help="(7860)")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen at"
    )
    parser.add_argument(
        "--model", default=published_model("hsst-enmap"), help="pre-trained model, folder or name on the Hub"
    )
    parser.add_argument(
        "--landcover", default=published_model("hsst-enmap-landcover"), help="model with a classification head"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for scenes and maps")
    parser.add_argument(
        "--example_size", type=int, default=EXAMPLE_SIDE, help="side of the simulated scenes in pixels (128)"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: what is faster here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with one_line_errors("app.py"):
        cache = arguments.cache.expanduser().resolve()
        cache.mkdir(parents=True, exist_ok=True)
        models = load_models(arguments.model, arguments.landcover, arguments.precision)
        for name in EXAMPLES:
            example_scene(name, cache, arguments.example_size)
        page = build_page(Gallery(models, cache, arguments.example_size))
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            allowed_paths=[str(cache / "maps")],
            max_file_size=LARGEST_UPLOAD,
            css=STYLE,
            theme=page_theme(),
            ssr_mode=False,
            share=False,
            footer_links=[],
        )


if __name__ == "__main__":
    main()
