#!/usr/bin/env bash
# Fine-tunes a pre-trained model for land cover on simulated labelled scenes and lays it out as a Hub repository:
#   bash scripts/build_land_cover.sh model_cards/hsst-enmap model_cards/hsst-enmap-landcover
# Scenes are simulated into outputs/land_cover; the last one is for test, the one before for validation (or more of
# each, LAND_COVER_HELD_OUT), the others for training. LAND_COVER_SCENES, LAND_COVER_SIZE (pixels), LAND_COVER_STEPS and
# LAND_COVER_SEED change how much and which, LAND_COVER_WORK where to (the folder is emptied); HSST_PYTHON names another
# Python than that of .venv. Further arguments go to run_classification.py.
set -euo pipefail
if [[ $# -lt 2 ]]; then
    echo "build_land_cover.sh: error: expected a pre-trained model and an output folder, got $# arguments" >&2
    exit 2
fi
model=$(realpath "$1")
output=$(realpath -m "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scenes=${LAND_COVER_SCENES:-8}
held_out=${LAND_COVER_HELD_OUT:-1}
if [[ $held_out -lt 1 ]]; then
    echo "build_land_cover.sh: error: LAND_COVER_HELD_OUT: expected at least 1, got $held_out" >&2
    exit 2
fi
training=$((scenes - 2 * held_out))
if [[ $training -lt 1 ]]; then
    echo "build_land_cover.sh: error: LAND_COVER_SCENES: expected at least $((2 * held_out + 1)), got $scenes" >&2
    exit 2
fi
python=${HSST_PYTHON:-.venv/bin/python}
# What the model was pre-trained on is in the land-cover model, too
read_sources='import sys; from huggingface_hub import ModelCard
print(*ModelCard.load(sys.argv[1]).data.to_dict()["training_sources"])'
if [[ ! -f $model/README.md ]]; then
    echo "build_land_cover.sh: error: $model: expected a model with its card, README.md, found none" >&2
    exit 2
fi
read -ra sources <<< "$("$python" -c "$read_sources" "$model/README.md")"
work=${LAND_COVER_WORK:-outputs/land_cover}
rm -rf "$work"

"$python" scripts/simulate_enmap.py --output_dir "$work/products" --num_scenes "$scenes" \
    --size "${LAND_COVER_SIZE:-256}" --seed "${LAND_COVER_SEED:-700000}" --cloud_cover 0 --haze_cover 0 --no_swath
names=()
for product in "$work"/products/ENMAP01-*/; do
    names+=("$(basename "$product")")
done
"$python" scripts/run_classification.py \
    --data_dir "$work/products" --images . --labels . \
    --train_area "${names[@]:0:training}" --validation_area "${names[@]:training:held_out}" \
    --test_area "${names[@]:training+held_out:held_out}" \
    --model hsst --model_name_or_path "$model" \
    --max_steps "${LAND_COVER_STEPS:-4000}" --turns --early_stopping_patience 1000 --evaluation_steps 200 \
    --output_dir "$work/model" \
    "$@"
"$python" scripts/build_model_card.py --model "$work/model" --output "$output" --sources simulated "${sources[@]}" --final
