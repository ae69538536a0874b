"""Draw what a pre-trained model makes of what it does not see, anywhere in a scene.

    python scripts/plot_reconstruction.py SCENE --model outputs/hsst --output reconstruction.png --row 100 --column 200

A scene is an EnMAP L2A product (folder or ZIP), a GeoTIFF or an ENVI image. The figure shows a cut of --size pixels
(by default in the middle of the scene), window by window through the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets_loading.scenes import Scene, open_scene
from hsst.support.choices import MASK_TYPES
from hsst.support.command_line import (
    HelpFormatter,
    add_scene_arguments,
    check_source,
    one_line_errors,
    reading_of,
    shown,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("scene", type=Path, metavar="SCENE", help="product or image")
    parser.add_argument("--model", required=True, help="folder, or name on the Hub, of a pre-trained model")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--row", type=int, help="first row of the cut (middle of the scene)")
    parser.add_argument("--column", type=int, help="first column of the cut (middle of the scene)")
    parser.add_argument("--size", type=int, default=64, help="side of the cut in pixels")
    parser.add_argument("--mask_type", choices=MASK_TYPES, help="which tokens are hidden together (the model's)")
    parser.add_argument("--mask_ratio", type=float, help="share of the tokens to hide (the model's)")
    parser.add_argument("--mask_patch_size", type=int, help="side of the hidden squares in positions (the model's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mask")
    add_scene_arguments(parser, "to hide")
    return parser.parse_args()


def cut(arguments: argparse.Namespace, scene: Scene, window: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns to draw: as many whole windows as fit into the asked size and the scene."""
    parts = []
    for first, length, side, name in zip(
        (arguments.row, arguments.column), scene.shape, window, ("--row", "--column"), strict=True
    ):
        size = min(arguments.size, length) // side * side
        if not size:
            raise ValueError(
                f"--size: expected at least the model's window of {side} pixels in a scene of at least as many, got "
                f"{arguments.size} in {length}"
            )
        start = (length - size) // 2 if first is None else first
        if not 0 <= start <= length - size:
            raise ValueError(f"{name}: expected 0 to {length - size} for {size} pixels in {length}, got {start}")
        parts.append(slice(start, start + size))
    return parts[0], parts[1]


def draw(arguments: argparse.Namespace, scene: Scene) -> Path:
    # Here, for help and refusals need not wait for torch
    import torch

    from datasets_loading.windows import tile_to_windows, windows_to_tile
    from hsst.support.figures import plot_reconstruction
    from hsst.support.model_sources import load_masked_model, read_processor
    from modeling_hsst import draw_mask
    from modeling_hsst.modeling_hsst_masked import hidden_values
    from modeling_hsst.scene_prediction_hsst import select_bands

    model = load_masked_model(arguments.model)
    processor = read_processor(arguments.model, model.config)
    config = model.config
    selection = select_bands(scene, processor, config.num_channels, arguments.resample)
    print(shown(f"{scene.name}: {selection.description}"))
    rows, columns = cut(arguments, scene, config.window_size)
    windows = tile_to_windows(selection.read(scene, rows, columns), config.window_size)
    pixel_values, pixel_mask = processor.standardize(windows, scale=scene.scale, nodata=scene.nodata)
    usable = ~scene.read_excluded(rows, columns, arguments.exclude)
    pixel_mask = pixel_mask & tile_to_windows(usable[None], config.window_size)[:, 0]
    if not pixel_mask.any():
        raise ValueError(
            f"{arguments.scene}: expected data in rows {rows.start} to {rows.stop - 1} and columns {columns.start} to "
            f"{columns.stop - 1}, got none or only excluded ones: choose others with --row and --column"
        )
    mask_type = arguments.mask_type or config.mask_type
    mask = draw_mask(
        len(windows),
        config.num_blocks,
        config.grid_size,
        mask_type=mask_type,
        mask_ratio=config.mask_ratio if arguments.mask_ratio is None else arguments.mask_ratio,
        mask_patch_size=arguments.mask_patch_size or config.mask_patch_size,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    parts = zip(pixel_values.split(64), pixel_mask.split(64), mask.split(64), strict=True)
    with torch.inference_mode():
        outputs = [
            model(values, hidden, valid, mask_type="unit").reconstruction  # fits masks of any kind
            for values, valid, hidden in parts
        ]
    size = rows.stop - rows.start, columns.stop - columns.start
    values, reconstruction, hidden = (
        windows_to_tile(part, size).numpy()
        for part in (
            processor.to_reflectance(pixel_values),
            processor.to_reflectance(torch.cat(outputs)),
            hidden_values(mask, pixel_values, config),
        )
    )
    return plot_reconstruction(
        arguments.output,
        reflectance=values,
        reconstruction=reconstruction,
        hidden=hidden,
        valid=windows_to_tile(pixel_mask.unsqueeze(1), size)[0].numpy(),
        wavelengths=config.wavelengths or processor.wavelengths,
        title=f"{scene.name}, rows from {rows.start}, columns from {columns.start}\n{mask_type} masks, "
        f"{mask.float().mean():.0%} of the tokens hidden",
    )


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("plot_reconstruction.py"):
        if arguments.output.suffix.lower() != ".png":
            raise ValueError(f"--output: expected a .png, got {arguments.output}")
        check_source(arguments.model, "--model")
        with open_scene(arguments.scene, **reading_of(arguments)) as scene:
            print(draw(arguments, scene))


if __name__ == "__main__":
    main()
