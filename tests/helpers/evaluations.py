"""Evaluations that train, on noisy images whose class is a bright row."""

from vicreg_jax.config import evaluation as protocols
from vicreg_jax.evaluate import supervised
from vicreg_jax.evaluate.inputs import open_inputs
from vicreg_jax.weights import Encoder

CLASSES, SIZE, BATCH = 3, 8, 16
WHOLE = dict(crop_scale=(1.0, 1.0), flip=0.0)  # of square images always the whole


def protocol(path, *, task="linear", epochs=3, augment=WHOLE, **groups):
    data = dict(name="arrays", path=path, batch_size=BATCH)
    given = dict(task=task, checkpoint="run", seed=5, epochs=epochs, data=data)
    return protocols.parse(given | dict(augment=augment) | groups)


def load(given, config):
    data = config.data
    options = dict(mean=data.mean, std=data.std, image_size=data.image_size)
    return open_inputs(given, Encoder(None, {}, config=config, **options))


def fit(given, trained, workdir):
    config, encoder, variables = trained
    workdir.mkdir(exist_ok=True)
    return supervised.fit(given, workdir, encoder, variables, load(given, config))


def newest(workdir):
    """The parameters of the newest checkpoint."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(
        (workdir / "checkpoints").absolute(), item_names=("state", "meta")
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(manager.latest_step(), args=args)["state"]
    manager.close()
    return state["params"]
