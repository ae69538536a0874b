#!/usr/bin/env bash
# The main job on an embedded default: simulates a small EnMAP L2A product, pre-trains a small HSST on it and draws what
# the model reconstructs. Arguments go to run_mim.py, e.g. `bash scripts/demo.sh --max_train_steps 100`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh
python=.venv/bin/python
products=outputs/demo/products
output=outputs/demo/hsst

"$python" scripts/simulate_enmap.py --output_dir "$products" --seed 0
"$python" -m accelerate.commands.launch --num_processes 1 --mixed_precision no --dynamo_backend no \
    scripts/run_mim.py \
    --train_dir "$products" \
    --output_dir "$output" \
    --mask_type tube \
    --per_device_train_batch_size 32 \
    --learning_rate 1e-3 \
    --max_train_steps 600 \
    --seed 0 \
    "$@"
echo "Pre-trained model, processor and reconstruction figures: $output"
