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
# # CIFAR-10 on a free GPU or TPU
#
# The recipe `cifar10`: a ResNet-18 with the CIFAR stem, batches of 256, bfloat16. It keeps
# all of its state in a folder, so that a session that ends can be continued, to the step.
#
# How long: the bar tells. An epoch is 195 steps; the speed has not been measured on a T4,
# v5e-1 or v5e-8 yet. The recipe has 1,000 epochs, this notebook 100. Published for a
# related recipe of 1,000 epochs: 92.07 % by an online linear head (solo-learn).

# %%
# Installs vicreg_jax, for a GPU or TPU with its own jax, unless it is there already.
import glob
import shutil
import sys

tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
extra = "data,demo,cuda" if shutil.which("nvidia-smi") else "data,demo"
extra += ",tpu" if tpu else ""
# !{sys.executable} -c "import vicreg_jax" 2> /dev/null || {sys.executable} -m pip install -q "vicreg_jax[{extra}] @ git+https://github.com/OWNER/vicreg_jax"

# %%
# Which devices: the batch is divided over all of them. They are asked by a process of its
# own, as only one at a time has a TPU.
# !{sys.executable} -c "import jax; print(jax.devices())"

# %% tags=["parameters"]
EPOCHS, BATCH = 100, 256
ENCODER, EXPANDER = "resnet18", "(2048,2048,2048)"
DATA = "--config.data.name=tfds"  # downloads it; or: name=arrays with path=FILE.npz
WORKDIR = "runs/cifar10"  # or gs://BUCKET/cifar10, which outlives the machine

# %%
# On Colab the run goes to your Drive, where it outlives the machine.
if "google.colab" in sys.modules:
    from google.colab import drive

    drive.mount("/content/drive")
    WORKDIR = "/content/drive/MyDrive/vicreg/cifar10"

# %% [markdown]
# ## Train, and go on after a disconnect
# The same cells again, on a new machine, continue at the last checkpoint, of which there is
# one each 10 epochs. Interrupting the cell saves first. What cannot fit into the memory of
# a device is refused before anything compiles; then take a smaller batch or expander.

# %%
# !{sys.executable} -m vicreg_jax.main --config=cifar10 --workdir={WORKDIR} {DATA} --config.epochs={EPOCHS} --config.optimizer.warmup_epochs={EPOCHS / 10} --config.data.batch_size={BATCH} --config.model.encoder={ENCODER} --config.model.expander="{EXPANDER}" --config.evaluate.draws=0 --config.evaluate.knn_epochs=10

# %% [markdown]
# ## How good is it?
# Nearest neighbours, which need no training, on the test images. A linear head takes
# longer: `--config=eval/linear`.

# %%
# !{sys.executable} -m vicreg_jax.main --config=eval/knn --config.checkpoint={WORKDIR}

# %%
import vicreg_jax as v

v.report.show(WORKDIR)

# %% [markdown]
# `--config=report --workdir={WORKDIR}` writes the page of the run, with this result in it;
# [scaling](../docs/scaling.md) has what more devices bring.
