"""Writes an encoder for others: safetensors and StableHLO, or PyTorch and Detectron2.

python -m vicreg_jax.main --config=configs/export.py --config.checkpoint=RUN \
    --workdir=OUT

`checkpoint` is the workdir of a run, an exported folder, or a .pth or .safetensors file
of the authors' code, torchvision or timm: so this converts them, too. More formats:
--config.export.formats="('safetensors','stablehlo','torch','detectron2')". What a file
computes is compared with the encoder on the same images. With export.hub=OWNER/NAME
the folder goes to the Hugging Face Hub with a model card (private at first).

Cost: a minute.
Result: files and encoder.json in OUT (docs/weights.md).
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "export"
    return c
