"""The whole program, as its users start it: each test runs fresh processes."""

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest
from helpers.processes import DIGITS, TINY, environment, main
from helpers.records import TIMES, lines, without_times
from helpers.runs import checkpoint_hash

from vicreg_jax import evaluate
from vicreg_jax.evaluate.probes import Accuracy

LOGGED = {
    *("step", "epoch", "loss", "invariance", "variance", "covariance"),
    *("covariance_over_noise", "representation_std", "embedding_std"),
    *("embedding_std_least", "embedding_std_greatest", "embedding_correlation"),
    *("representation_rank", "embedding_rank"),
    *("learning_rate", "grad_norm", "skipped_steps"),
}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """One uninterrupted run with its table; other tests compare with it."""
    cwd = tmp_path_factory.mktemp("whole")
    done = main(DIGITS, *TINY, "--config.evaluate.draws=3", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "digits", done


def test_a_run_writes_its_record_into_the_default_workdir(whole_run):
    workdir, done = whole_run
    assert (
        json.loads((workdir / "config.json").read_text())["data"]["batch_size"] == 100
    )
    records = lines(workdir)
    assert [r["step"] for r in records] == [1, 5, 10, 14, *range(15, 56, 5), 56]
    for record in records:
        assert set(record) - TIMES == LOGGED
    assert all(set(r) >= TIMES for r in records[1:])
    assert records[-1]["epoch"] == 4
    first, floor = records[0], 15 / 99  # (d - 1) / (n - 1), for each of two views
    ratio = first["covariance"] / (2 * floor)
    assert first["covariance_over_noise"] == pytest.approx(ratio, rel=1e-6)
    total = 25 * first["invariance"] + 25 * first["variance"] + first["covariance"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)  # float32 sums
    assert "compiling" in done.stderr and "step 56/56" in done.stderr
    assert done.stderr.count("health at step 14: healthy: mean embedding std") == 1


def test_tensorboard_shows_what_the_record_holds(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, _ = whole_run
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("loss")]
    assert shown == [(r["step"], pytest.approx(r["loss"])) for r in lines(workdir)]


def test_the_run_ends_with_a_table_of_few_label_probes(whole_run):
    workdir, done = whole_run
    rows = ("raw pixels", "PCA-whitened pixels", "untrained encoder", "VICReg")
    for row in rows:
        assert f"│ {row} " in done.stdout
    table = json.loads((workdir / "few_labels.json").read_text())
    assert len(table) == len(rows) * 2 * 4
    pixels = {
        (r["probe"], r["labels"]): r["draws"] for r in table if r["features"] == rows[0]
    }
    assert len(pixels["1-NN", 1]) == 3 and len(pixels["1-NN", 0]) == 1
    assert pixels["1-NN", 0][0] > 95  # with all labels, pixels do well on digits
    assert pixels["1-NN", 1][0] < pixels["1-NN", 10][0] < pixels["1-NN", 0][0]


def test_a_finished_run_is_not_trained_again(whole_run):
    workdir, _ = whole_run
    before = (workdir / "metrics.jsonl").read_bytes()
    flags = (DIGITS, *TINY, f"--workdir={workdir}", "--config.evaluate.draws=3")
    again = main(*flags, PYTHONIOENCODING="ascii")  # which has no ±
    assert again.returncode == 0, again.stderr
    assert "?" in again.stdout and again.stdout.isascii()
    assert "has finished its 56 steps" in again.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_like_an_uninterrupted_one(
    whole_run, tmp_path
):
    workdir, _ = whole_run
    command = [sys.executable, "-m", "vicreg_jax.main", DIGITS, *TINY]
    command += ["--config.evaluate.draws=0", f"--workdir={tmp_path}"]
    chance = random.Random(0)
    reached = []
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for number in (*numbers, signal.SIGKILL):
        target = (reached or [0])[-1] + chance.randint(3, 10)
        with subprocess.Popen(
            command, env=environment(), stderr=subprocess.PIPE, text=True
        ) as process:
            # Wait until the record, not the clock, says that it is under way.
            begin = time.monotonic()
            while process.poll() is None and time.monotonic() < begin + 1500:
                path = tmp_path / "metrics.jsonl"
                done = lines(tmp_path) if path.exists() and path.read_text() else []
                if done and done[-1]["step"] >= target:
                    process.send_signal(number)
                    break
                time.sleep(0.01)
            _, said = process.communicate(timeout=1500)
        if "stopped and saved at step" not in said and process.returncode == 0:
            break  # it was through
        want = {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 0)
        assert process.returncode == want, said
        if number != signal.SIGKILL:
            assert "stopped and saved at step" in said
        reached.append(lines(tmp_path)[-1]["step"])
    assert len(reached) >= 3, "the run ended before it could be interrupted thrice"
    last = main(DIGITS, *TINY, "--config.evaluate.draws=0", f"--workdir={tmp_path}")
    assert last.returncode == 0, last.stderr
    assert checkpoint_hash(tmp_path) == checkpoint_hash(workdir)
    assert without_times(lines(tmp_path)) == without_times(lines(workdir))


@pytest.mark.slow
def test_eight_virtual_devices_neither_hang_nor_change_the_result(whole_run, tmp_path):
    workdir, _ = whole_run
    flags = [flag.replace("=100", "=96") for flag in TINY]
    flags += ["--config.epochs=2", "--config.evaluate.draws=0"]
    for devices in ("1", "8"):
        folder = f"--workdir={tmp_path / devices}"
        done = main(DIGITS, *flags, folder, JAX_NUM_CPU_DEVICES=devices)
        assert done.returncode == 0, done.stderr
    one, eight = lines(tmp_path / "1"), lines(tmp_path / "8")
    assert [r["step"] for r in one] == [r["step"] for r in eight]
    # Sums in another order: training multiplies the difference by about ten in three
    # steps, so after ten of them it says nothing any more.
    early = [record["loss"] for record in one if record["step"] <= 10]
    assert len(early) == 3
    found = [record["loss"] for record in eight[:3]]
    assert found == pytest.approx(early, rel=1e-5)


@pytest.mark.slow
def test_the_demo_beats_raw_pixels_on_images_that_its_recipe_was_chosen_on(tmp_path):
    # Not the test split: that is for the demo itself.
    done = main(DIGITS, "--config.data.validation=True", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "few_labels.json").read_text())
    gains = evaluate.gains([Accuracy(**row) for row in table])
    for probe in ("1-NN", "linear"):
        for labels in (1, 5, 10):
            _, low, _ = gains[probe, labels]
            assert low > 0
        mean, _, _ = gains[probe, 0]
        assert mean >= -100 * 2 / 360 - 1e-9  # at most two images fewer


def test_a_run_without_variance_collapses_and_the_program_says_why(tmp_path):
    flags = ("--config.loss.variance=0", "--config.evaluate.draws=0")
    done = main(DIGITS, *TINY, *flags, f"--workdir={tmp_path}", "--config.epochs=8")
    assert done.returncode == 0, done.stderr
    warning = next(x for x in done.stderr.splitlines() if "NOT healthy" in x)
    assert "loss.variance is 0" in warning and "mean embedding std" in warning
    records = lines(tmp_path)
    assert records[-1]["embedding_std"] < 0.25 * records[0]["embedding_std"]


def test_another_config_in_the_same_workdir_is_refused_but_more_epochs_are_not(
    whole_run, tmp_path
):
    workdir, _ = whole_run
    other = main(DIGITS, *TINY, f"--workdir={workdir}", "--config.seed=5")
    assert refusal(other) == (
        f"{workdir} holds another run: seed was 0, is 5. Choose another --workdir, or"
        " give the old values to continue it"
    )
    shutil.copytree(workdir, tmp_path / "run")
    flags = (DIGITS, *TINY, "--config.evaluate.draws=0", f"--workdir={tmp_path}/run")
    longer = main(*flags, "--config.epochs=5")
    assert longer.returncode == 0 and lines(tmp_path / "run")[-1]["step"] == 70


def refusal(done):
    """Returns the one line of a refused start."""
    assert done.returncode != 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line.removeprefix("vicreg_jax: ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--config is missing"),
        (("--config=nowhere.py",), "'nowhere.py' is no file of yours and no recipe"),
        (("--config=digit",), "did you mean digits? There are cifar10"),
        ((DIGITS, "--config.loss.varience=1"), "did you mean config.loss.variance?"),
        ((DIGITS, "--config.epochs=ten"), "--config.epochs=ten: invalid literal"),
        (
            (DIGITS, "--config.epochs=5"),
            "(9) must be less than config.epochs (5); add --config.optimizer.warmup_ep",
        ),
        ((DIGITS, "--config.method=moco"), "no method 'moco'; there are vicreg, barl"),
        ((DIGITS, "--wrkdir=x"), "Did you mean: workdir"),
        ((DIGITS, "--config.data.batch_size=1440"), "has 1437 examples, fewer than"),
        (
            (DIGITS, "--config.data.batch_size=30"),
            "batch_size 30 cannot be divided over 4 devices; use 28 or 32",
        ),
        (
            (DIGITS, "--config.data.name=arrays", "--config.data.path=no.npz"),
            "there is no file 'no.npz'",
        ),
        ((DIGITS, "--config.wandb=project"), 'pip install "wandb"'),
    ],
)
def test_a_mistake_is_refused_in_one_line(flags, expected, tmp_path):
    done = main(*flags, cwd=tmp_path, JAX_NUM_CPU_DEVICES="4")
    assert expected in refusal(done)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [("refusals.Unusable", 2), ("ValueError", 1), ("KeyboardInterrupt", 130)],
)
def test_only_a_refusal_is_one_line_and_says_do_not_start_again(error, status):
    code = f"""if True:
        from vicreg_jax import main, refusals
        from vicreg_jax.command import tasks
        def fail(config, workdir):
            raise {error}("because")
        tasks.TASKS["pretrain"] = fail
        main.console()
    """
    done = subprocess.run(
        [sys.executable, "-c", code, "--config=digits"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    if status == 1:
        assert "Traceback" in done.stderr and "ValueError: because" in done.stderr
    else:
        assert done.stderr == ("vicreg_jax: because\n" if status == 2 else "")


@pytest.mark.long
def test_of_a_field_that_is_given_twice_the_last_value_counts(tmp_path):
    twice = (
        *("--config.model.expander=(8,8)", "--config.data.batch_size=90"),
        *("--config.model.expander=(16,8)", "--config.data.batch_size=100"),
    )
    flags = ("--config.epochs=1", "--config.optimizer.warmup_epochs=0", *twice)
    draws = "--config.evaluate.draws=0"
    done = main("--config=digits", *TINY, *flags, draws, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs" / "digits" / "config.json").read_text())
    assert config["model"]["expander"] == [16, 8]
    assert config["data"]["batch_size"] == 100


def test_help_lists_the_recipes_or_the_fields_of_one(tmp_path):
    said = main("--help", cwd=tmp_path)
    assert said.returncode == 0 and "\n  eval/knn " in said.stdout
    said = main("--config=digits", "--help", cwd=tmp_path)
    assert said.returncode == 0 and "--config.data.batch_size=128 " in said.stdout


def test_a_gpu_that_jax_does_not_see_is_named(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0)'\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = main(DIGITS, cwd=tmp_path, PATH=path, JAX_PLATFORMS="")
    line = refusal(done)
    assert line.startswith("nvidia-smi sees 1 GPU(s) and jax none")
    assert "vicreg_jax[cuda]" in line and "JAX_PLATFORMS=cpu" in line


def test_the_core_needs_neither_tensorflow_nor_the_command_lines_packages(tmp_path):
    code = """if True:
        import sys
        for name in ("tensorflow", "tensorflow_datasets", "ml_collections", "sklearn",
                     "torch", "tensorboardX", "wandb"):
            sys.modules[name] = None
        import numpy as np
        from vicreg_jax.weights import loading
        from vicreg_jax import losses, models, optim, train
        z = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
        assert losses.vicreg(*z).invariance > 0
        images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
        config = dict(
            epochs=2,
            data=dict(batch_size=16, image_size=8),
            model=dict(encoder="digits", expander=(16, 16)),
            optimizer=dict(warmup_epochs=1),
        )
        trained = train.run(config, sys.argv[1], source=images)
        print(int(trained.state.step))
    """
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8"


def test_weights_and_biases_gets_every_line(tmp_path):
    (tmp_path / "wandb.py").write_text(
        "import json\n"
        "class Run:\n"
        "    def log(self, metrics, step):\n"
        "        print(json.dumps({'step': step, **metrics}))\n"
        "    def finish(self):\n"
        "        print('finished')\n"
        "def init(project, id, name, dir, config, resume):\n"
        "    assert project == 'p' and config['loss.variance'] == 25 and id\n"
        "    return Run()\n"
    )
    flags = (*TINY, "--config.epochs=2", "--config.evaluate.draws=0")
    workdir = tmp_path / "run"
    done = main(
        *(DIGITS, *flags, "--config.wandb=p", f"--workdir={workdir}"),
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    *sent, finished = done.stdout.splitlines()
    assert [json.loads(line) for line in sent] == lines(workdir)
    assert finished == "finished"


@pytest.mark.long
def test_the_hash_of_a_checkpoint_tells_runs_apart(whole_run, tmp_path):
    flags = (*TINY, "--config.seed=1", "--config.evaluate.draws=0")
    done = main(DIGITS, *flags, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (step, other), (_, first) = checkpoint_hash(tmp_path), checkpoint_hash(whole_run[0])
    assert step == "56" and len(other) == hashlib.sha256().digest_size * 2
    assert other != first
