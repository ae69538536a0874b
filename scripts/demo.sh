#!/usr/bin/env bash
# The main jobs on an embedded default: simulates EnMAP L2A products, pre-trains a small HSST on one and draws what it
# reconstructs, and draws what the published models make of another: features, land cover, hidden bands of a spectrum.
# Some minutes on two CPU cores. Arguments go to run_mim.py, e.g.
#   bash scripts/demo.sh --max_train_steps 100
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_environment.sh
python=.venv/bin/python
products=outputs/demo/products
output=outputs/demo/hsst

rm -rf "$products" "$output"
"$python" scripts/simulate_enmap.py --output_dir "$products" --size 320 --seed 3 --cloud_cover 0.03
"$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    scripts/run_mim.py \
    --train_dir "$products" \
    --tile_size 32 \
    --output_dir "$output" \
    --config_overrides num_spatial_layers=2,num_spectral_layers=2,num_attention_heads=4,head_dim=16 \
    --mask_type block \
    --dropout 0 \
    --per_device_train_batch_size 8 \
    --max_train_steps 600 \
    --validation_steps 300 \
    --seed 0 \
    "$@"
"$python" scripts/simulate_enmap.py --output_dir "$products/small" --size 96 --seed 5 --cloud_cover 0.03 --no_swath
"$python" scripts/explore_scene.py "$products"/small/ENMAP*Z --output outputs/demo/scene.png
echo "Look at outputs/demo/scene.png and $output"
