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
# # Features of a scene, and a query
# Turns every pixel of a scene into a vector, and finds pixels like a given one. Runs in a few minutes on a CPU, in
# the root of the repository, with `pip install ".[simulate]" notebook`.

# %%
import os
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

while not Path("model_cards").is_dir() and Path.cwd() != Path("/"):
    os.chdir("..")  # to the root of the repository

# %% [markdown]
# ## A scene
# An EnMAP product of yours would do as well: `EnMAPProduct.open("products/SCENE")`. This one is simulated, with the
# land cover of every pixel known.

# %%
from datasets_loading.enmap_product import EnMAPProduct
from datasets_loading.simulation.scene import simulate_scene, write_scene
from hsst.support.figures import true_color

size = 128  # side of the scene in pixels of 30 m
scene = simulate_scene(size, size, seed=11, cloud_cover=0.0, haze_cover=0.0, cirrus_cover=0.0, swath=False)
path = write_scene(scene, "outputs/notebooks/products")
product = EnMAPProduct.open(path)
picture = true_color(product.read() / 10000, product.wavelengths)[0]

# %% [markdown]
# ## Features
# A vector of 96 numbers for each pixel. Their three main directions, as red, green and blue, show what the model
# tells apart.

# %%
from hsst import extract_features
from hsst.support.features import features_as_colors

vectors = extract_features("model_cards/hsst-enmap", path)  # (96, height, width)

figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
for axis, shown, title in zip(axes, (picture, features_as_colors(vectors)), ("true color", "features"), strict=True):
    axis.imshow(shown)
    axis.set_title(title)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A query
# How alike are all pixels to this one? Change row and column, and run the cell again.

# %%
row, column = size // 2, size // 4

flat = vectors.reshape(len(vectors), -1)
centered = flat - flat.mean(axis=1, keepdims=True)
unit = centered / np.linalg.norm(centered, axis=0)
similarity = (unit.T @ unit[:, row * size + column]).reshape(size, size)  # cosine, from -1 to 1

figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
axes[0].imshow(picture)
axes[1].imshow(similarity, cmap="gray", vmin=0, vmax=1)
for axis in axes:
    axis.plot(column, row, marker="o", markersize=12, markerfacecolor="none", markeredgecolor="red")
    axis.axis("off")
plt.show()

# %% [markdown]
# The hundred most alike, beside the land cover that the simulation states:

# %%
most_alike = np.argsort(-similarity, axis=None)[1:101]
names = np.array([*scene.class_names, *["no label"] * (256 - len(scene.class_names))])
print("the pixel:", names[scene.labels[row, column]])
for name, count in zip(*np.unique(names[scene.labels.flat[most_alike]], return_counts=True), strict=True):
    print(f"{count} of the 100 most alike: {name}")
