"""
Lay out a pre-trained model as its Hub repository: weights, configuration, processor, flat code, figure and card.

    python scripts/build_model_card.py --model outputs/demo/hsst --output model_cards/hsst-enmap

Every number of the card comes from the model's `all_results.json`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from command_line import one_line_errors

from modeling_hsst import HSSTForMaskedImageModeling, HSSTImageProcessor
from modeling_hsst.hub_hsst import export_for_hub

FIGURE = "reconstruction.png"
STATUS_OF_DEMO = """\
> **A placeholder.** These weights come from the demonstration of the package: a small model, trained for minutes on
> one simulated scene. They show that loading works; they are not for use on real data. Trained weights will take their
> place under the same name."""

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
  - hyperspectral
  - remote-sensing
  - EnMAP
  - masked-image-modeling
---

# {name}

{status}

HSST is a vision transformer for hyperspectral images: blockwise patch embeddings and attention factorised into space
and spectrum, pre-trained by masked image modelling, after *Masked Vision Transformers for Hyperspectral Image
Classification* (Scheibenreif, Mommert and Borth, CVPR EarthVision 2023). This is a new implementation with weights of
its own, not the authors' checkpoint.

## Load
With the package (`pip install hsst`):

```python
import modeling_hsst
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{repository}")
model = AutoModel.from_pretrained("{repository}")
# image: stored numbers (reflectance x 10000), (bands, height, width), with the band centres in nm
inputs = processor(image, wavelengths=wavelengths)
features = model(**inputs).last_hidden_state  # (windows, blocks * positions, width)
```

Without it: the same with `trust_remote_code=True`.

## Model
| | |
|---|---|
| parameters | {parameters:,} |
| input | {num_channels} bands, {band_range}, windows of {window} pixels |
| tokens | {num_blocks} spectral blocks x {num_positions} positions |
| layers | {num_spatial_layers} spatial, {num_spectral_layers} spectral, width {hidden_size} |
| positions | {position_embedding_type} |
| masks in training | {mask_type}, {realised_mask_ratio:.0%} of the tokens |

## Training data
{training_data}

| | |
|---|---|
| tiles | {training_tiles} to train, {validation_tiles} to validate |
| windows seen | {windows_seen:,} in {steps:,} steps |
| seed | {seed} |
| versions | torch {torch}, transformers {transformers}, accelerate {accelerate} |

## Reconstruction
Mean absolute error of the hidden values of the validation tiles, in standard deviations of each band:

| | |
|---|---|
| this model | {eval_loss:.3f} |
| before training | {start_eval_loss} |
| mean of the band over the training tiles | {eval_band_mean_loss:.3f} |
| mean of the window's visible tokens of the same band | {eval_visible_mean_loss:.3f} |

![Input, what the model sees, its reconstruction, and spectra]({figure})

## Limits
Validation tiles are cut from the same scene as the training tiles: the errors above say nothing about other places,
seasons or sensors.

## Citation
```bibtex
@inproceedings{{scheibenreif2023masked,
  title = {{Masked Vision Transformers for Hyperspectral Image Classification}},
  author = {{Scheibenreif, Linus and Mommert, Michael and Borth, Damian}},
  booktitle = {{IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops (EarthVision)}},
  year = {{2023}},
}}
```
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="output folder of run_mim.py")
    parser.add_argument("--output", type=Path, required=True, help="folder of the Hub repository")
    parser.add_argument("--repository", default="hsg-aiml/hsst-enmap", help="its name on the Hub")
    parser.add_argument("--training_data", default="Simulated EnMAP L2A products (`scripts/simulate_enmap.py`).")
    parser.add_argument("--final", action="store_true", help="leave out the note that these weights are a placeholder")
    return parser.parse_args()


def card(model: HSSTForMaskedImageModeling, results: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The text of the card."""
    config = model.config
    wavelengths = config.wavelengths
    start = results.get("start_eval_loss")
    values: dict[str, Any] = {
        **config.to_dict(),
        **results,
        **results["versions"],
        "name": arguments.repository.split("/")[-1],
        "repository": arguments.repository,
        "status": "" if arguments.final else STATUS_OF_DEMO,
        "training_data": arguments.training_data,
        "band_range": "of unknown wavelengths"
        if wavelengths is None
        else f"{wavelengths[0]:.0f} to {wavelengths[-1]:.0f} nm",
        "window": "x".join(map(str, config.window_size)),
        "num_blocks": config.num_blocks,
        "num_positions": config.num_positions,
        "start_eval_loss": "not measured (resumed)" if start is None else f"{start:.3f}",
        "seed": results["run"]["seed"],
        "figure": FIGURE,
    }
    return CARD.format(**values)


def main() -> None:
    arguments = parse_arguments()
    with one_line_errors("build_model_card.py"):
        results_file = arguments.model / "all_results.json"
        if not results_file.is_file():
            raise ValueError(
                f"{arguments.model}: expected a finished run of run_mim.py with all_results.json, found none"
            )
        results = json.loads(results_file.read_text())
        model = HSSTForMaskedImageModeling.from_pretrained(arguments.model)
        processor = HSSTImageProcessor.from_pretrained(arguments.model)
        figures = sorted((arguments.model / "figures").glob("*.png"))
        if not figures:
            raise ValueError(f"{arguments.model}: expected a reconstruction figure in figures/, found none")
        export_for_hub(model, processor, arguments.output)
        shutil.copyfile(figures[-1], arguments.output / FIGURE)
        shutil.copyfile(results_file, arguments.output / "all_results.json")
        (arguments.output / "README.md").write_text(card(model, results, arguments), encoding="utf-8")
    print(f"Hub repository: {arguments.output}")


if __name__ == "__main__":
    main()
