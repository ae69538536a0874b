# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A map from 60 points
# Writes 60 points with their land cover, as a GIS would, lets `--model auto` choose how to classify pixels, and maps
# the scene. Runs in some minutes on a CPU, in the root of the repository, with `pip install ".[simulate]" notebook`.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

while not Path("model_cards").is_dir() and Path.cwd() != Path("/"):
    os.chdir("..")  # to the root of the repository


def hsst(*words):
    """Runs a command, and shows the lines that it prints at its end."""
    program = subprocess.run([sys.executable, "-m", "hsst", *map(str, words)], capture_output=True, text=True)
    print(*program.stdout.splitlines()[-8:], sep="\n")
    assert program.returncode == 0, program.stderr


# %% [markdown]
# ## A scene and points
# The scene is simulated, so that every pixel's land cover is known. Of each of the four most frequent classes, 15
# pixels are drawn and written as points in geographic coordinates. With a scene of yours, draw points in a GIS, and
# save them as GeoJSON or GeoPackage with a column for the class.

# %%
from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.simulation.scene import simulate_scene, write_scene
from rasterio.transform import xy
from rasterio.warp import transform

size = 128  # side of the scene in pixels of 30 m
folder = Path("outputs/notebooks/points")
scene = simulate_scene(size, size, seed=12, cloud_cover=0.0, haze_cover=0.0, cirrus_cover=0.0, swath=False)
product = EnMAPProduct.open(write_scene(scene, folder))

counts = np.bincount(scene.labels[scene.labels != 255], minlength=len(scene.class_names))
generator = np.random.default_rng(0)
features = []
for number in np.argsort(-counts)[:4]:
    for pixel in generator.choice(np.flatnonzero(scene.labels == number), 15, replace=False):
        x, y = xy(product.transform, *divmod(int(pixel), size))
        ((longitude,), (latitude,)) = transform(product.crs, "EPSG:4326", [x], [y])
        geometry = {"type": "Point", "coordinates": [longitude, latitude]}
        features.append(
            {"type": "Feature", "geometry": geometry, "properties": {"land_cover": scene.class_names[number]}}
        )
collection = {"type": "FeatureCollection", "features": features}
(folder / "points.geojson").write_text(json.dumps(collection))
print(len(features), "points")

# %% [markdown]
# ## Choose and train
# Spectra or features of the model, with several classifiers: whatever is best in folds that are apart in space. The
# last lines say what was chosen and how good it is in places without points.

# %%
model = folder / "model"
labels = ("--labels", "points.geojson", "--class_column", "land_cover", "--block_size", size // 8)
choice = ("--model", "auto", "--model_name_or_path", "model_cards/hsst-enmap", "--folds", 3)
hsst("finetune", "--data_dir", folder, "--images", product.path.name, *labels, *choice, "--output_dir", model)

# %% [markdown]
# ## Map
# `map.tif` opens in a GIS with colors and names of the classes; `map.png` is a quick look.

# %%
hsst("predict", product.path, "--model", model, "--output", folder / "map.tif", "--confidence")

# %%
from matplotlib import pyplot as plt

plt.figure(figsize=(14, 6))
plt.imshow(plt.imread(folder / "map.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Is it right?

# %%
import rasterio

with rasterio.open(folder / "map.tif") as dataset:
    classes = dataset.read(1)
    mapped = json.loads(dataset.tags()["class_names"])
truth = np.array([*scene.class_names, *[""] * (256 - len(scene.class_names))])[scene.labels]
known = np.isin(truth, mapped) & (classes != 255)
share = np.mean(np.array([*mapped, *[""] * (256 - len(mapped))])[classes][known] == truth[known])
print(f"{share:.0%} of the pixels of the four classes have the right one")
