"""
What each part of HSST is worth: the paper's ablation on a labelled scene, each area being the test area once.

    python scripts/experiments/run_ablation.py --data_dir potsdam --area west=0,64,0,96 --area east=64,128,96,160 \\
        --output_dir outputs/ablation

The ladder goes from a standard ViT over blockwise embedding, factorised attention and spectral positions to masked
pre-training, one thing at a time; the table of masks pre-trains a model for each mask type and ratio and judges it by
fine-tuning and by a linear probe. Models are pre-trained here, on the training area alone and without its labels; with
--model_name_or_path, the ladder's last rung starts from that checkpoint, and all rungs have its configuration. Every
run is a row of `runs.csv` as soon as it is done: the same command goes on where it was interrupted. At the end,
`ablation.json`, `.png` and `.html` say what came out.
"""

import argparse
from functools import partial

from hsst.experiments.ablation import (
    PARTS,
    Ablation,
    Mask,
    ladder_rows,
    mask_rows,
    text_table,
    write_ablation_reports,
)
from hsst.experiments.area_pretraining import PretrainingSettings
from hsst.experiments.label_efficiency import (
    Budget,
    add_experiment_arguments,
    quiet_libraries,
    run_experiment,
    set_up,
)
from hsst.support.command_line import one_line_errors

MASK_TYPES = ("unit", "block", "tube", "grid")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(ladder masks)")
    parser.add_argument(
        "--budgets", default="10%,100%", help="of the ladder: labels per class, or shares of the labels (10%%,100%%)"
    )
    masks = parser.add_argument_group("masks")
    masks.add_argument("--mask_type", choices=MASK_TYPES, default="tube", help="of the ladder's last rung (tube)")
    masks.add_argument("--mask_ratio", type=float, default=0.7, help="of the ladder's last rung (0.7)")
    masks.add_argument(
        "--mask_types", nargs="+", choices=MASK_TYPES, default=["unit", "block", "tube"], help="(unit block tube)"
    )
    masks.add_argument("--mask_ratios", nargs="+", type=float, default=[0.5, 0.7, 0.9], help="(0.5 0.7 0.9)")
    masks.add_argument(
        "--mask_patch_size",
        type=int,
        default=2,
        help="side of the squares of block and tube masks, in positions (2: the published 4 leave 8x8 positions only "
        "quarters to hide)",
    )
    masks.add_argument("--mask_budget", default="10%", help="labels that masks are judged with (10%%)")
    pretraining = parser.add_argument_group("pre-training")
    own = PretrainingSettings()
    pretraining.add_argument("--pretraining_steps", type=int, default=own.steps, help=f"({own.steps})")
    pretraining.add_argument("--pretraining_batch_size", type=int, default=own.batch_size, help=f"({own.batch_size})")
    pretraining.add_argument(
        "--pretraining_learning_rate", type=float, default=own.learning_rate, help=f"({own.learning_rate})"
    )
    add_experiment_arguments(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    with one_line_errors("run_ablation.py"):
        budgets = [Budget.parse(budget).name for budget in arguments.budgets.split(",")]
        mask_budget = Budget.parse(arguments.mask_budget).name
        pretraining = PretrainingSettings(
            arguments.pretraining_steps,
            arguments.pretraining_batch_size,
            arguments.pretraining_learning_rate,
            use_cpu=bool(arguments.use_cpu),
        )
        setup, seeds = set_up(arguments)
        ablation = Ablation(
            setup.directions,
            setup.options,
            setup.settings,
            pretraining,
            arguments.output_dir,
            [part for part in PARTS if part in arguments.parts],
            list(dict.fromkeys(budgets)),
            Mask(arguments.mask_type, arguments.mask_ratio, arguments.mask_patch_size),
            [
                Mask(mask_type, ratio, arguments.mask_patch_size)
                for mask_type in dict.fromkeys(arguments.mask_types)
                for ratio in dict.fromkeys(arguments.mask_ratios)
            ],
            mask_budget,
        )
        ablation.check()
        experiment = ablation.experiment(setup.description)
        rows = run_experiment(
            experiment,
            ablation.runs(seeds),
            arguments.output_dir,
            processes=arguments.processes,
            prepare=partial(ablation.pretrain_missing, experiment, progress=True),
        )
        summary = ablation.summary(rows, experiment)
        for part, rows_of in (("ladder", ladder_rows), ("masks", mask_rows)):
            if summary[part]:
                print(f"\n{text_table(*rows_of(summary))}")
        print()
        for path in write_ablation_reports(summary, arguments.output_dir):
            print(path)


if __name__ == "__main__":
    main()
