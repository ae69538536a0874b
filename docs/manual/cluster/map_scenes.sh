#!/usr/bin/env bash
# Maps many scenes in sixteen jobs that know nothing of each other: sbatch docs/manual/cluster/map_scenes.sh
# Submit it again, and only scenes without a map are done.
#SBATCH --job-name=hsst-maps
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --gpus=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%a.log
set -euo pipefail
source .venv/bin/activate
export HF_HUB_OFFLINE=1 # compute nodes seldom have a network
export OMP_NUM_THREADS=4

# Every sixteenth scene is this job's
export RANK=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN)) WORLD_SIZE="$SLURM_ARRAY_TASK_COUNT"
hsst predict 'scenes/*.ZIP' --model outputs/land_cover --output maps "$@"
