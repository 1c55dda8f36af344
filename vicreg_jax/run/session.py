"""The one loop of every long job: it feeds, watches, stops, saves, goes back and logs.

What a step computes and how it is judged is the job's.
"""

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vicreg_jax import devices, files
from vicreg_jax.config import Config, Evaluation, fields
from vicreg_jax.devices import processes, sharding
from vicreg_jax.refusals import Diverged, Refusal, Unusable
from vicreg_jax.run import checksums, goodput, progress, rerun, workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.run.goodput import Goodput
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.run.recorder import Recorder
from vicreg_jax.run.signals import Stop
from vicreg_jax.run.spikes import LASTS, Spikes
from vicreg_jax.run.watchdog import Watchdog

__all__ = ["Job", "Session", "out_of_memory", "spans"]


class Job:
    """What a session works on: a step, and how it is judged."""

    config: Config | Evaluation  # its `guard` says what is put up with
    images: Any  # a `data.source.Source` of the batches
    mesh: Mesh  # over which they are divided
    epoch: int  # steps of an epoch
    total: int  # steps of all epochs
    log_steps: int  # between lines of metrics
    checkpoint_steps: int  # between checkpoints
    judge_steps: int = 0  # between judgements, 0 for none
    profile_step: int = 0  # which is profiled, 0 for none
    at_once: int = 1  # steps of one dispatch, where it may take several
    like: Any  # shapes and shardings of the state
    facts: Mapping[str, Any]  # what a checkpoint must have been made with; see there
    size: str  # in words, what takes the memory of a device
    warning: str = ""  # in words, what may go wrong
    cure: str  # in words, what to try where numbers are not finite

    def opening(self, before: Any, start: int) -> list[str]:
        """Returns lines on what is to be done, before anything compiles.

        Args:
          before: the config of what is continued, or None.
          start: the step that it continues at.
        """
        return []

    def init(self) -> Any:
        """Returns the state of step 0."""
        raise NotImplementedError

    def make(self, span: range) -> Any:
        """Returns this process's part of the batch of some steps, host arrays [b, ...].

        Of several steps the arrays are [b, steps, ...].
        """
        raise NotImplementedError

    def step(self, state: Any, batch: Any, count: int) -> tuple[Any, dict, Any]:
        """Returns the state after `count` steps, metrics and outputs of the last."""
        raise NotImplementedError

    def measure(self, step: int, values: Mapping, outputs: Any) -> dict[str, Any]:
        """Returns what is to be logged beside the metrics of a step."""
        return {}

    def judge(self, state: Any, note: Callable[[str], None]) -> dict[str, float]:
        """Returns what a judgement finds; it is logged with the metrics of the step.

        Args:
          note: takes a line that is to stay.
        """
        return {}

    def saved(self, step: int) -> None:
        """Is told of each step whose state is being saved."""

    def text(self, values: Mapping[str, float]) -> str:
        """Returns the line beside the bar."""
        return f"loss {values['loss']:.4f}"

    def notes(
        self, step: int, values: Mapping[str, float], first: Mapping[str, float]
    ) -> list[str]:
        """Returns lines that are to stay, about the metrics of a step and the first."""
        return []

    def explain(self, workdir: Path, state: Any, batch: Any, step: int) -> str:
        """Returns a clause, "; ...", on where numbers are not finite, or "": unknown.

        Args:
          state: the latest, at most one step later.
          batch: of the step.
        """
        return ""


class Session:
    """A job in its workdir, from its start or newest checkpoint to its end.

    Of several processes (`jax.distributed`) each makes the same calls; the first
    writes. As a context it ends, when all is saved, with what told it to stop.

    Args:
      workdir: claimed by the config of the job.
      before: the config of what it continues, where that may differ.
      start_wandb: function (workdir, config, note) -> a run on Weights & Biases, or
        None.

    Attributes:
      start: the step that it continues at. state: that of this step, None at 0 until
        somebody sets it.
      watchdog: to be paused for what may take long.
      bar: shows what is going on.
      goodput: counts what the time goes into.
    """

    def __init__(
        self, job: Job, workdir: Path, *, before: Any = None, start_wandb: Any = None
    ):
        self.job, self.workdir = job, workdir
        self._before, self._start_wandb = before, start_wandb
        self._together = jax.process_count() > 1
        self._copy = jax.jit(partial(jax.tree.map, jnp.copy))
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        self._one_by_one = job.mesh.size > 1 and jax.default_backend() == "cpu"

    def __enter__(self) -> "Session":
        job, workdir, lead = self.job, self.workdir, jax.process_index() == 0
        with ExitStack() as closing:
            # Left last, after the last save.
            self._stop = closing.enter_context(Stop(together=self._together))
            closing.enter_context(out_of_memory(job.size))
            arrays = checksums.arrays(job.like)  # their kinds, as they have no values
            processes.agree({**job.facts, "array": arrays})
            self.checkpoints = Checkpoints(
                workdir / "checkpoints",
                facts=job.facts,
                other_data=job.config.guard.other_data,
            )
            closing.callback(self.checkpoints.close)
            self.start, self.state = self.checkpoints.restore(job.like) or (0, None)
            if self.start > job.total:
                raise Refusal(
                    f"{workdir} is at step {self.start}, but config.epochs="
                    f"{job.config.epochs} asks for {job.total} steps; give it more"
                    " epochs or choose another --workdir"
                )
            if lead:
                workdirs.write_config(workdir, job.config)
                about = {"memory_per_device": job.size, "examples": len(job.images)}
                where = devices.environment() | about
                files.write_json(workdir / "environment.json", where)
            self.goodput = Goodput(workdir, self.start)
            self.bar = progress.Bar(total=job.total, done=self.start, silent=not lead)
            closing.callback(self.bar.close)
            for text in self._opening():
                self.bar.note(text)
            self.watchdog = Watchdog(
                job.config.guard.stuck_seconds,
                _at_hand(workdir) / f"stuck_{jax.process_index()}.txt",
            )
            closing.callback(self.watchdog.close)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *error):
        return self._closing.__exit__(*error)

    @property
    def finished(self) -> bool:
        return self.start == self.job.total

    def train(self) -> Any:
        """Returns the state of the last step, after training what is left.

        Raises:
          Diverged: loss or gradient stay not finite, after going back once.
          KeyboardInterrupt, SystemExit: it was told to stop, and has saved.
        """
        wandb_run = None
        if self._start_wandb and jax.process_index() == 0:
            config = fields.flat(self.job.config)
            wandb_run = self._start_wandb(self.workdir, config, self.bar.note)
        if wandb_run:
            self._closing.callback(self._finish, wandb_run)
        self.goodput.add("starting", self.goodput.in_steps())
        self._may_go_back, self._spikes = True, Spikes(self.job.config.guard.spike)
        while True:
            try:
                return self._train(wandb_run)
            except _Back as error:
                found = None
                if self._may_go_back:
                    with self.watchdog.paused():
                        self.checkpoints.wait()
                        found = self.checkpoints.restore(
                            self.job.like, before=error.first
                        )
                if found is None:
                    raise Diverged(str(error)) from None
                (self.start, self.state), self._may_go_back = found, False
                self._spikes.forget_row()
                self.bar.note(f"{error.what}: back to step {self.start}")

    def _finish(self, wandb_run):
        with self.watchdog.paused():  # it uploads what is left
            wandb_run.finish()

    def _train(self, wandb_run):
        """Trains from `start` to the end, a signal, or numbers that go wrong."""
        job = self.job
        ends = (job.log_steps, job.epoch, job.checkpoint_steps)
        feed = Feed(
            job.make,
            spans(self.start, job.total, most=job.at_once, ends=ends),
            sharding=sharding.split(job.mesh),
            seconds=job.images.seconds,
        )
        with ExitStack() as closing:
            recorder = Recorder(self, feed, wandb_run)
            closing.callback(recorder.close)
            closing.callback(
                workdirs.list_broken, job.images, self.workdir, self.bar.note
            )
            self.bar.say("compiling")
            with self.goodput.spent("compiling"):
                state = job.init() if self.state is None else self.state
            self.state = None  # its buffers are given to the first step
            compiled, behind = set(), None
            for span, batch in self.goodput.timed("waiting for data", feed):
                step = span[-1] + 1
                state, values, outputs = self._dispatch(
                    state, batch, span, compiled, recorder
                )
                if behind:  # the host stays one step ahead, not more
                    self._look(state, *behind)
                behind = step, values, batch
                self.watchdog.beat()
                found = self._judge(step, state, recorder)
                recorder.step(step, values, outputs, found)
                if self._one_by_one:
                    recorder.flush()
                last = step == job.total
                due = step % job.checkpoint_steps == 0 or last
                if due:
                    self._look(state, *behind)
                    behind = None
                    # What is to be gone back to is from before such steps.
                    due = last or not int(values["skipped_in_a_row"])
                # Read once: it may arrive between two readings.
                stopped = processes.preempted() if self._together else self._stop.signal
                if due or stopped:
                    recorder.save()
                    with self.watchdog.paused(), self.goodput.spent("saving"):
                        score = (found or {}).get("knn_top1")
                        self.checkpoints.save(step, state, score=score)
                        job.saved(step)
                    self._compare(step)
                if stopped:
                    self._leave(step)
            with self.watchdog.paused(), self.goodput.spent("saving"):
                self.checkpoints.wait()
        if jax.process_index() == 0:
            self.goodput.write(job.total, last=True)
            self.bar.note(goodput.words(self.goodput.lines()))
        return state

    def _compare(self, step):
        """Says which of several processes holds the others up."""
        if not self._together:
            return
        steps, seconds = step - self.start, self.goodput.in_steps()
        own = processes.of_all((seconds - self.goodput.blocked) / steps)
        if line := goodput.slowest(own, seconds / steps):
            self.bar.note(f"step {step}: {line}")

    def _opening(self):
        """Returns lines on what is to be done, where it begins and what it may lack."""
        if self.finished:
            return []
        where = f"in {self.workdir}"
        if self.start:
            where = (
                f"continuing {self.workdir} at step {self.start} of {self.job.total}"
            )
        lines = [*self.job.opening(self._before, self.start), where, self.job.warning]
        lines += [*self.checkpoints.notes, self.checkpoints.room(self.job.like)]
        return [line for line in lines if line]

    def _dispatch(self, state, batch, span, compiled, recorder):
        """Hands some steps to the devices; waits for them only where it compiles."""
        begin, fresh = time.perf_counter(), len(span) not in compiled
        compiled.add(len(span))
        profiled = self.job.profile_step - 1 in span and jax.process_index() == 0
        with ExitStack() as around:
            if fresh or profiled:
                around.enter_context(self.watchdog.paused())
            if profiled:
                folder = self.workdir / "profile"
                local = str(around.enter_context(files.staged(folder)))
                profile = jax.profiler.trace(local, create_perfetto_trace=True)
                around.enter_context(profile)
            with jax.profiler.StepTraceAnnotation("train", step_num=span[-1] + 1):
                result = self._computed(state, batch, span)
            if fresh or profiled or self._one_by_one:
                jax.block_until_ready(result)
        if fresh or profiled:  # no part of the rates
            recorder.pause(time.perf_counter() - begin)
            self.goodput.add("compiling", time.perf_counter() - begin)
        if profiled:
            self.bar.note(f"step {span[-1] + 1} is profiled: {folder}")
        return result

    def _computed(self, state, batch, span):
        """Returns what the job's step does; compares two of them where it is due."""
        every, count = self.job.config.guard.rerun_steps, len(span)
        if not every or span[0] // every == (span[-1] + 1) // every:
            return self.job.step(state, batch, count)
        again = self._copy(state)
        first = self.job.step(state, batch, count)
        if self._one_by_one:
            jax.block_until_ready(first)
        names = rerun.differences(first, self.job.step(again, batch, count))
        if names:
            raise Unusable(
                f"step {span[-1] + 1}, computed twice, differs in {names}: a device"
                " computes wrongly, or the program is not deterministic there (on a GPU"
                " set XLA_FLAGS=--xla_gpu_deterministic_ops=true); the last checkpoint"
                " is from before"
            )
        return first

    def _look(self, state, step, values, batch):
        """Raises where too many steps in a row were skipped, or the loss has left."""
        with self.goodput.blocking():
            loss, row = jax.device_get((values["loss"], values["skipped_in_a_row"]))
        if first := self._spikes.look(step, float(loss)):
            what = (
                f"loss {loss:.4g} at step {step}, above {self._spikes.bound():.4g} for"
                f" {LASTS} steps"
            )
            earlier = any(x < first for x in self.checkpoints.steps())
            if self._may_go_back and processes.of_first(earlier):
                raise _Back(what, what, first=first)
            self.bar.note(f"{what}; it goes on")
        limit = self.job.config.guard.skipped_steps
        if row < limit:
            return
        with self.watchdog.paused():
            where = self.job.explain(self.workdir, state, batch, step)
        what = f"loss or gradient not finite at step {step}"
        raise _Back(
            f"{what}, {limit} steps in a row{where}. The last checkpoint is from"
            f" before; in another --workdir try {self.job.cure}",
            what,
            first=step - int(row) + 1,
        )

    def _judge(self, step, state, recorder):
        """Returns what the job's judgement finds, None where none is due."""
        if not self.job.judge_steps or step % self.job.judge_steps:
            return None
        jax.block_until_ready(state)
        recorder.flush()
        begin = time.perf_counter()
        with self.watchdog.paused():
            found = self.job.judge(state, self.bar.note)
        recorder.pause(time.perf_counter() - begin)
        self.goodput.add("judging", time.perf_counter() - begin)
        return found

    def _leave(self, step):
        """Ends a job that was told to stop, once all is saved."""
        with self.watchdog.paused(), self.goodput.spent("saving"):
            self.checkpoints.wait()
        if jax.process_index() == 0:
            self.goodput.write(step, last=True)
        self.bar.note(
            f"stopped and saved at step {step} of {self.job.total}; the same command"
            " continues"
        )
        self._stop.leave(self._stop.signal or signal.SIGTERM)  # of another process


def _at_hand(workdir):
    """Returns a folder on a disk for what is written as all else is stuck."""
    return Path(tempfile.gettempdir()) if files.in_bucket(workdir) else workdir


class _Back(Exception):
    """The steps from `first` on went wrong; the message is for who cannot go back."""

    def __init__(self, message, what, *, first):
        super().__init__(message)
        self.what, self.first = what, first


def spans(start: int, stop: int, *, most: int, ends: Sequence[int]) -> Iterator[range]:
    """Yields the steps from `start` to `stop` in spans of `most`, or of one.

    No span has a multiple of one of `ends` inside, only at its end, nor step 1. Where a
    span begins it depends on nothing before, so a continued run has the same ones.
    """
    while start < stop:
        last = min(stop, *(start + end - start % end for end in ends))
        whole = start > 0 and start + most <= last
        yield range(start, start + (most if whole else 1))
        start += most if whole else 1


@contextlib.contextmanager
def out_of_memory(size: str) -> Iterator[None]:
    """Turns a device's "out of memory" into one line that says what takes it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Refusal(
            f"a device ran out of memory with {size}; lower"
            " config.data.batch_size, take a smaller network, or more devices"
        ) from error
