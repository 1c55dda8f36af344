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
# # Collapse and its cure, on handwritten digits
#
# [VICReg](https://arxiv.org/abs/2105.04906) learns images without labels: two augmented
# views of an image should have the same embedding (invariance), while each dimension of
# the embeddings keeps its spread (variance) and no two say the same (covariance). Here you
# train with all three terms, then without the variance, and look at what happens.
#
# No data set is needed. Any device will do: some minutes on two CPU cores.

# %%
# Installs vicreg_jax, for a GPU or TPU with its own jax, unless it is there already.
import glob
import shutil
import sys

tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
extra = "demo,cuda" if shutil.which("nvidia-smi") else "demo,tpu" if tpu else "demo"
# !{sys.executable} -c "import vicreg_jax" 2> /dev/null || {sys.executable} -m pip install -q "vicreg_jax[{extra}] @ git+https://github.com/OWNER/vicreg_jax"

# %%
# Which device; asked by a process of its own, as only one at a time has a TPU.
# !{sys.executable} -c "import jax; print(jax.devices())"

# %% tags=["parameters"]
EPOCHS, DRAWS = 30, 20  # the recipe has 90 epochs of 11 steps, 100 draws of labels

# %% [markdown]
# ## The recipe, as a command
# The bar shows the loss and its terms; `std` is the mean standard deviation of the
# embeddings, which should rise. The table at the end is the accuracy on test images of
# simple classifiers, on these features and on others, given so many labels of each class.

# %%
# !{sys.executable} -m vicreg_jax.main --config=digits --workdir=runs/cured --config.epochs={EPOCHS} --config.optimizer.warmup_epochs={EPOCHS / 10} --config.evaluate.draws={DRAWS}

# %% [markdown]
# ## The same from Python, without the variance term
# Nothing now keeps the embeddings apart, and the easiest way to make two views equal is to
# make all images equal. The run says so, when it begins.

# %%
import json
from pathlib import Path

import vicreg_jax as v

config = json.loads(Path("runs/cured/config.json").read_text())
config["loss"]["variance"] = 0.0
collapsed = v.train.run(config, "runs/collapsed")

# %% [markdown]
# ## Side by side
# The loss of the collapsed run is lower. It has learned nothing: the spread of its
# embeddings is gone.

# %%
v.report.show("runs/cured", "runs/collapsed")

# %% [markdown]
# ## What the encoder finds similar
# A map of the test images by their representations, coloured by labels that training never
# saw, and some images with their nearest neighbours.

# %%
from vicreg_jax.evaluate import gallery

v.report.show("runs/cured", gallery=gallery.of_run(Path("runs/cured")))

# %%
# The encoder is a function from here on: uint8 images in, representations out.
from sklearn.datasets import load_digits

images = (load_digits().images[..., None] * 15.9).astype("uint8")
features = v.load("runs/cured")(images)
features.shape, features.dtype

# %% [markdown]
# `!vicreg-jax --config=report --workdir=runs/cured` writes all of this as one page. Next:
# [your own images](own_images.ipynb), [CIFAR-10](cifar10.ipynb), [the loss in code of your
# own](losses.ipynb).
