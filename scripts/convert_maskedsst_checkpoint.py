"""
Turn a published MaskedSST checkpoint (.pth of its pre-training or fine-tuning scripts) into a folder for the Auto
classes.

    python scripts/convert_maskedsst_checkpoint.py --checkpoint pretrained.pth --output outputs/maskedsst

The variant is found from the weights' names and shapes and the settings in the file. Nothing in the file is executed.
The files hold no band statistics: --processor names a folder with the `preprocessor_config.json` of the data.
"""

import argparse
from pathlib import Path

from hsst.support.command_line import one_line_errors
from hsst.support.conversion import model_from_published, read_published_checkpoint
from modeling_hsst import HSSTImageProcessor


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="file written by the published scripts")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--processor", type=Path, help="folder with the preprocessor_config.json to put beside the weights"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("convert_maskedsst_checkpoint.py"):
        if arguments.output.exists() and not arguments.output.is_dir():
            raise ValueError(f"--output: expected a folder, but {arguments.output} is a file")
        weights, settings = read_published_checkpoint(arguments.checkpoint)
        try:
            model = model_from_published(weights, settings)
        except ValueError as error:
            raise ValueError(f"{arguments.checkpoint}: {error}") from error
        processor = HSSTImageProcessor.from_pretrained(arguments.processor) if arguments.processor else None
        if processor is not None and processor.num_bands not in (None, model.config.num_channels):
            raise ValueError(
                f"{arguments.processor}: expected statistics of {model.config.num_channels} bands, got "
                f"{processor.num_bands}"
            )
        model.save_pretrained(arguments.output)
        if processor is not None:
            processor.save_pretrained(arguments.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} with {parameters:,} parameters: {arguments.output}")


if __name__ == "__main__":
    main()
