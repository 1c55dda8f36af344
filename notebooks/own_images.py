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
# # Your own images
#
# From a folder of images, without labels, to an encoder of them: train, from public weights
# or anew, ask whether it got better, look at what it finds similar, take the features along.
#
# A GPU is wanted for images of 128 pixels: a ResNet-18 and some thousand images. Without
# a folder of yours, patches of two photographs stand in for it.

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
FOLDER = ""  # of your images, in class folders or not; on Colab perhaps on the Drive
WORKDIR = "runs/mine"
EPOCHS, BATCH, PIXELS = 50, 64, 128
ENCODER, EXPANDER = "resnet18", "(2048,2048,2048)"
WEIGHTS = ""  # of ENCODER, to go on from: a .pth or .safetensors file, an export, a run

# %%
# The stand-in: 400 patches of the photographs that scikit-learn has.
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

if not FOLDER:
    FOLDER, chance = "patches", np.random.default_rng(0)
    for name, photograph in zip(
        ("temple", "flower"), load_sample_images().images, strict=True
    ):
        target = Path(FOLDER, name)
        target.mkdir(parents=True)
        for i in range(200):
            top, left = (chance.integers(x - 160) for x in photograph.shape[:2])
            patch = photograph[top : top + 160, left : left + 160]
            Image.fromarray(patch).save(target / f"{i:03}.png")

# %% [markdown]
# ## Train
# With `WEIGHTS` the recipe is `continue`: at first only the new expander learns, then the
# encoder with it, at a tenth of its rate. Files of torchvision and timm are read by their
# names; the authors' ResNet-50 is at https://dl.fbaipublicfiles.com/vicreg/resnet50.pth
# (`ENCODER = "resnet50"`).
#
# A tenth of the images is held out; the last line is the verdict on them: better, worse, or
# within noise. A batch that cannot fit into the memory of the device is refused before
# anything compiles. The same cell again goes on where it stopped.

# %%
recipe = f"continue --config.model.weights={WEIGHTS}" if WEIGHTS else "folder"
# !{sys.executable} -m vicreg_jax.main --config={recipe} --workdir={WORKDIR} --config.data.path={FOLDER} --config.data.held_out=0.1 --config.data.batch_size={BATCH} --config.data.image_size={PIXELS} --config.model.encoder={ENCODER} --config.model.expander="{EXPANDER}" --config.epochs={EPOCHS} --config.optimizer.warmup_epochs={EPOCHS / 10} --config.every.checkpoint_epochs={EPOCHS}

# %%
# The encoder for others: safetensors, and StableHLO, which needs no code of ours.
# !{sys.executable} -m vicreg_jax.main --config=export --config.checkpoint={WORKDIR} --workdir=export
# !ls export

# %% [markdown]
# ## Is it healthy?
# The page's first line goes by the spread of the embeddings. "Narrower than at first" is
# usual early on; collapse is not.

# %%
import vicreg_jax as v

v.report.show(WORKDIR)

# %%
# What the encoder finds similar. Where the folder has class folders, other labels are
# framed; training never saw them.
from vicreg_jax.evaluate import gallery

v.report.show(WORKDIR, gallery=gallery.of_run(Path(WORKDIR)))

# %% [markdown]
# ## Features
# `v.load` takes a run, an export, or anybody's ResNet, ViT or ConvNeXt as `.pth` or
# `.safetensors`: features of published weights are the baseline to beat.

# %%
from vicreg_jax import evaluate
from vicreg_jax.data.sources.folder import open_folder

features = evaluate.encode(v.load(WORKDIR), open_folder(FOLDER))
np.save("features.npy", features)
features.shape
