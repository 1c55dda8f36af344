"""The command line: flags, refusals in one line, dispatch by task."""

import re
import sys
import traceback
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vicreg_jax import config as configs
from vicreg_jax import evaluate, train
from vicreg_jax.data import sources

CONFIG = config_flags.DEFINE_config_file("config", None, "File with a get_config().")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; by default runs/NAME of the config file."
)
USAGE = (
    "python -m vicreg_jax.main --config=configs/digits.py [--workdir=DIR]"
    " [--config.data.batch_size=256 ...]"
)


def pretrain(config: configs.Config, workdir: Path) -> None:
    """Trains, then prints the table of few-label probes if the config asks for it."""
    trained = train.run(config, workdir)
    if config.evaluate.draws:
        encoders = {
            "untrained encoder": train.untrained(config),
            "VICReg": trained.variables,
        }
        splits = sources.load(config.data, seed=config.seed)
        table = evaluate.few_labels(splits, trained.encoder, encoders, config)
        evaluate.save(table, workdir / "few_labels.json")
        evaluate.show(table)


TASKS = {"pretrain": pretrain}


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    config = configs.parse(CONFIG.value)
    name = Path(flags.FLAGS["config"].config_filename).stem
    TASKS[config.task](config, Path(WORKDIR.value or f"runs/{name}"))


def parse_flags(argv: list[str]) -> list[str]:
    """Returns what absl leaves of argv; exits with one line where it is wrong."""
    for word in argv[1:]:
        override = re.match(r"--?config\.([\w.]+)", word)
        if override:
            configs.check_name(override[1])
    file = next((w.split("=", 1)[1] for w in argv if re.match("--?config=", w)), None)
    if file and not Path(file.split(":")[0]).is_file():
        raise ValueError(f"--config: there is no file {file!r}")
    if file:  # so that a config finds its base, `from configs import ...`
        sys.path.insert(0, str(Path(file.split(":")[0]).resolve().parents[1]))
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise ValueError(f"{error}; usage: {USAGE}") from error
    except AttributeError as error:
        raise ValueError(
            f"--config={file}: {error}; a config file has a function get_config() whose"
            " result holds every field that is overridden"
        ) from error
    if file is None:
        raise ValueError(f"--config is missing; usage: {USAGE}")
    if len(rest) > 1:
        raise ValueError(f"expected --flag=value; got {rest[1]!r}; usage: {USAGE}")
    return rest


def is_refusal(error: Exception) -> bool:
    """Tells a message to the user from a defect: this package itself raised it."""
    expected = ValueError | OSError | ModuleNotFoundError | FloatingPointError
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(__file__).parent)
    return isinstance(error, expected) and frames[-1].filename.startswith(home)


def console() -> None:
    """Runs `main`; a refusal is one line on standard error and exit status 2."""
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"vicreg_jax: {error}")


if __name__ == "__main__":
    console()
