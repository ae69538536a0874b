"""
Masked pre-training of HSST on hyperspectral tiles, with the flags of transformers' run_mim_no_trainer.py.

    accelerate launch scripts/run_mim.py --train_dir products --output_dir outputs/hsst
    accelerate launch --mixed_precision bf16 scripts/run_mim.py --train_dir tiles --mask_type unit --mask_ratio 0.7 ...
    torchrun --nproc_per_node 2 scripts/run_mim.py ...  # on CPUs ACCELERATE_USE_CPU=true before it

--train_dir is a folder of EnMAP L2A products (folders or ZIPs), GeoTIFF tiles, or a corpus (prepare_enmap.py). Only
a corpus may be larger than memory; with --streaming it is read without a copy of it in the cache of `datasets`. The
output folder holds the model and its image processor, `all_results.json`, `log_history.jsonl`, and a reconstruction
figure from every validation.
"""

import argparse
import os
from pathlib import Path

from hsst.support.choices import MASK_TYPES, SCHEDULERS
from hsst.support.command_line import HelpFormatter, add_reading_arguments, check_source, one_line_errors


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="dataset of the Hub, or corpus, with a column `image` of tiles")
    data.add_argument("--train_dir", type=Path, help="folder of EnMAP L2A products, images or a corpus to train on")
    data.add_argument("--validation_dir", type=Path, help="folder of products, tiles or a corpus to validate on")
    data.add_argument(
        "--streaming", action="store_true", help="read a corpus as it is, not through a copy in the Arrow cache"
    )
    data.add_argument(
        "--train_val_split", type=float, default=0.15, help="share of the training tiles to validate on instead"
    )
    add_reading_arguments(data)
    data.add_argument("--tile_size", type=int, default=64, help="side of the tiles cut from products, in pixels")
    data.add_argument(
        "--windows_per_tile", type=int, help="windows an epoch takes from each tile (as many as tile it)"
    )
    data.add_argument(
        "--bands",
        choices=("config", "valid"),
        default="config",
        help="the bands of the configuration, found by wavelength, or all that hold data",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name_or_path", help="checkpoint to go on from; the band statistics of its processor are kept"
    )
    model.add_argument(
        "--recompute_statistics",
        action="store_true",
        help="standardize with the statistics of the training tiles, not with those of the checkpoint",
    )
    model.add_argument("--config_name_or_path", help="configuration to train from scratch (the published one)")
    model.add_argument("--config_overrides", help="settings to change, e.g. hidden_size=48,num_spatial_layers=2")
    model.add_argument("--image_size", type=int, help="side of a window in pixels (the configuration's)")
    model.add_argument("--patch_size", type=int, help="side of a spatial patch in pixels (the configuration's)")
    model.add_argument("--mask_type", choices=MASK_TYPES, help="tokens that are hidden together (the configuration's)")
    model.add_argument(
        "--mask_types", nargs="+", choices=MASK_TYPES, help="several kinds of masks, of which each step takes one"
    )
    model.add_argument("--mask_ratio", type=float, help="share of the tokens to hide (the configuration's)")
    model.add_argument("--mask_patch_size", type=int, help="side of hidden squares in positions (the configuration's)")
    model.add_argument("--dropout", type=float, default=0.1, help="of attention weights and layers (the paper's 0.1)")
    training = parser.add_argument_group("training")
    training.add_argument("--per_device_train_batch_size", type=int, default=64, help="windows on each device at once")
    training.add_argument("--per_device_eval_batch_size", type=int, default=64, help="the same, of validation")
    training.add_argument("--learning_rate", type=float, default=8e-3, help="the largest of the schedule")
    training.add_argument("--weight_decay", type=float, default=0.05, help="of weight matrices")
    training.add_argument("--num_train_epochs", type=int, default=100, help="passes over the tiles")
    training.add_argument("--max_train_steps", type=int, help="steps in all (those of --num_train_epochs)")
    training.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of a step")
    training.add_argument("--lr_scheduler_type", choices=SCHEDULERS, default="cosine", help="of the learning rate")
    training.add_argument("--num_warmup_steps", type=int, help="steps in which the learning rate rises (5 %% of all)")
    training.add_argument(
        "--decay_share", type=float, default=0.25, help="last share of the steps, in which warmup_stable_decay falls"
    )
    training.add_argument(
        "--gain", type=float, default=0.0, help="spread of a random factor on each window's reflectance"
    )
    training.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm, with 0 to none"
    )
    training.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), help="(the launcher's)")
    training.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that read tiles; 0: none")
    training.add_argument("--seed", type=int, default=0, help="of weights, windows, masks and the validation tiles")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", type=Path, required=True, help="folder of the model, made if missing")
    output.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="start anew in a folder with another run: its checkpoints and figures are removed, its model is replaced",
    )
    output.add_argument("--checkpointing_steps", help="save the whole state every N steps, or every `epoch`")
    output.add_argument(
        "--resume_from_checkpoint", help="a folder saved so, or `latest`, which begins where there is none yet"
    )
    output.add_argument(
        "--allow_changed_run", action="store_true", help="go on with other arguments, or another number of processes"
    )
    output.add_argument("--validation_steps", type=int, help="validate every N steps (at the end of each epoch)")
    output.add_argument("--with_tracking", action="store_true", help="log to the trackers of --report_to")
    output.add_argument("--report_to", default="all", help="tensorboard, wandb, ...; all: those that are installed")
    output.add_argument("--push_to_hub", action="store_true", help="upload the trained model")
    output.add_argument("--hub_model_id", help="repository to push to")
    output.add_argument("--hub_token", help="token of the Hub (the one stored on this machine)")
    arguments = parser.parse_args()
    if (arguments.train_dir is None) == (arguments.dataset_name is None):
        parser.error("expected one of --train_dir and --dataset_name")
    if arguments.push_to_hub and arguments.hub_model_id is None:
        parser.error("--push_to_hub needs --hub_model_id")
    if arguments.recompute_statistics and arguments.model_name_or_path is None:
        parser.error("--recompute_statistics needs --model_name_or_path; without it they are computed anyway")
    if arguments.overwrite_output_dir and arguments.resume_from_checkpoint is not None:
        parser.error("--overwrite_output_dir starts anew and --resume_from_checkpoint goes on: expected one of them")
    ones = "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps tile_size"
    ones += " windows_per_tile num_train_epochs max_train_steps validation_steps image_size patch_size mask_patch_size"
    zeros = "gain learning_rate weight_decay num_warmup_steps max_grad_norm dropout dataloader_num_workers seed"
    for minimum, names in ((1, ones), (0, zeros)):
        for name in names.split():
            value = getattr(arguments, name)
            if value is not None and not value >= minimum:
                parser.error(f"--{name}: expected at least {minimum}, got {value}")
    if not 0 <= arguments.decay_share <= 1:
        parser.error(f"--decay_share: expected a share from 0 to 1, got {arguments.decay_share}")
    steps = arguments.checkpointing_steps
    if steps is not None and steps != "epoch" and not (steps.isdigit() and int(steps) > 0):
        parser.error(f"--checkpointing_steps: expected a number of steps or `epoch`, got {steps}")
    try:
        check_source(arguments.model_name_or_path, "--model_name_or_path")
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # Here, for help and refusals need not wait for torch
    from accelerate import PartialState

    from hsst.support.pretraining_run import pretrain

    # Before the first step nothing is lost, and processes that wait for each other would meet those of the next run
    with one_line_errors("run_mim.py", grace=1.0):
        pretrain(arguments)
        PartialState().destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
