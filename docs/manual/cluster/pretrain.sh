#!/usr/bin/env bash
# Pre-trains on the GPUs of several nodes: sbatch docs/manual/cluster/pretrain.sh, from the root of the repository.
# Submit it again, under the same name, and it goes on from the latest checkpoint.
#SBATCH --job-name=hsst
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.log
set -euo pipefail
source .venv/bin/activate
export HF_HUB_OFFLINE=1 # compute nodes seldom have a network
export OMP_NUM_THREADS=4

read -r first_node < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # a pipe to `head` would end the job at times
port=$((10000 + SLURM_JOB_ID % 20000)) # of this job's own: jobs may share a node
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "$SLURM_GPUS_ON_NODE" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first_node:$port" \
    scripts/run_mim.py --train_dir corpus --streaming --dataloader_num_workers 3 \
    --per_device_train_batch_size 64 --learning_rate 3e-3 --mixed_precision bf16 \
    --num_train_epochs 100 --checkpointing_steps 500 --resume_from_checkpoint latest \
    --output_dir outputs/hsst "$@"
