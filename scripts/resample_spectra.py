"""
Resample reflectance images of other sensors to EnMAP's bands, as tiles for pre-training.

    python scripts/resample_spectra.py forest_plots --wavelengths wavelengths.txt --output_dir tiles
    accelerate launch scripts/run_mim.py --train_dir tiles --output_dir outputs/hsst

Images must cover all 202 bands that EnMAP's products of 2022 and 2023 hold data in (418 to 2446 nm, without water
vapour); one that does not is refused, for a missing band would make every pixel of its tile invalid.
"""

import argparse
from pathlib import Path

from tqdm.auto import tqdm

from hsst.support.command_line import HelpFormatter, add_reading_arguments, check_least, one_line_errors, reading_of


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="GeoTIFF or ENVI images of reflectance, or folders")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the tiles, made if missing")
    add_reading_arguments(parser)
    parser.add_argument("--tile_size", type=int, default=64, help="largest side of a tile in pixels")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Here, for help need not wait for torch
    from datasets_loading.resampling import enmap_weights, find_images, resample_image
    from datasets_loading.scenes import open_scene

    with one_line_errors("resample_spectra.py"):
        images = find_images(arguments.images)
        check_least(arguments, 1, "tile_size")
        names = [image.stem for image in images]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"images: expected names that differ, got {duplicates[0]} more than once")
        reading = reading_of(arguments)
        for image in tqdm(images, desc="checking", unit="image"):  # all of them before the first tile is written
            with open_scene(image, **reading) as scene:
                enmap_weights(scene)
        num_tiles = num_pixels = 0
        for image in tqdm(images, desc="resampling", unit="image"):
            result = resample_image(image, arguments.output_dir, tile_size=arguments.tile_size, **reading)
            num_tiles += len(result.tiles)
            num_pixels += result.num_pixels
    print(f"{num_tiles} tiles with {num_pixels:,} pixels of {len(images)} images: {arguments.output_dir}")


if __name__ == "__main__":
    main()
