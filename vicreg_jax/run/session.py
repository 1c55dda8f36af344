"""The one loop of every long job: it feeds, watches, stops, saves, goes back and logs.

What a step computes and how it is judged is the job's.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vicreg_jax import devices, files
from vicreg_jax.config import Config, Evaluation, fields
from vicreg_jax.devices import processes, sharding
from vicreg_jax.refusals import Diverged, Refusal
from vicreg_jax.run import progress, workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.run.recorder import Recorder
from vicreg_jax.run.signals import Stop
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
    facts: Mapping[str, Any]  # what a checkpoint must have been made with
    size: str  # in words, what takes the memory of a device
    warning: str = ""  # in words, what may go wrong
    cure: str  # in words, what to try where numbers are not finite

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
      start_wandb: function (workdir, config, note) -> a run on Weights & Biases, or
        None.

    Attributes:
      start: the step that it continues at. state: that of this step, None at 0 until
        somebody sets it.
      watchdog: to be paused for what may take long.
      bar: shows what is going on.
    """

    def __init__(self, job: Job, workdir: Path, *, start_wandb: Any = None):
        self.job, self.workdir, self._start_wandb = job, workdir, start_wandb
        self._together = jax.process_count() > 1
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        self._one_by_one = job.mesh.size > 1 and jax.default_backend() == "cpu"

    def __enter__(self) -> "Session":
        job, workdir, lead = self.job, self.workdir, jax.process_index() == 0
        with ExitStack() as closing:
            # Left last, after the last save.
            self._stop = closing.enter_context(Stop(together=self._together))
            closing.enter_context(out_of_memory(job.size))
            self.checkpoints = Checkpoints(workdir / "checkpoints", facts=job.facts)
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
                where = devices.environment() | {"memory_per_device": job.size}
                files.write_json(workdir / "environment.json", where)
            self.bar = progress.Bar(total=job.total, done=self.start, silent=not lead)
            closing.callback(self.bar.close)
            self.watchdog = Watchdog(
                job.config.guard.stuck_seconds,
                workdir / f"stuck_{jax.process_index()}.txt",
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
        went_back = 0
        while True:
            try:
                return self._train(wandb_run, went_back)
            except _NotFinite as error:
                with self.watchdog.paused():
                    self.checkpoints.wait()
                    found = None
                    if not went_back:
                        found = self.checkpoints.restore(self.job.like)
                if found is None:
                    raise Diverged(str(error)) from None
                (self.start, self.state), went_back = found, error.step

    def _finish(self, wandb_run):
        with self.watchdog.paused():  # it uploads what is left
            wandb_run.finish()

    def _train(self, wandb_run, went_back):
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
            for text in self._opening(went_back):
                self.bar.note(text)
            self.bar.say("compiling")
            state = job.init() if self.state is None else self.state
            self.state = None  # its buffers are given to the first step
            compiled, behind = set(), None
            for span, batch in feed:
                step = span[-1] + 1
                state, values, outputs = self._dispatch(
                    state, batch, span, compiled, recorder
                )
                if behind:  # the host stays one step ahead, not more
                    self._need_finite(state, *behind)
                behind = step, values, batch
                self.watchdog.beat()
                found = self._judge(step, state, recorder)
                recorder.step(step, values, outputs, found)
                if self._one_by_one:
                    recorder.flush()
                due = step % job.checkpoint_steps == 0 or step == job.total
                if due:
                    self._need_finite(state, *behind)
                # Read once: it may arrive between two readings.
                stopped = processes.preempted() if self._together else self._stop.signal
                if due or stopped:
                    recorder.flush()
                    with self.watchdog.paused():
                        score = (found or {}).get("knn_top1")
                        self.checkpoints.save(step, state, score=score)
                if stopped:
                    self._leave(step)
            with self.watchdog.paused():
                self.checkpoints.wait()
        return state

    def _opening(self, went_back):
        """Returns lines on where it begins and what it may lack."""
        where = ""
        if went_back:
            where = (
                f"loss or gradient not finite at step {went_back}: back to step"
                f" {self.start}"
            )
        elif self.start:
            where = (
                f"continuing {self.workdir} at step {self.start} of {self.job.total}"
            )
        room = self.checkpoints.room(self.job.like)
        return [x for x in (where, self.job.warning, self.checkpoints.note, room) if x]

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
                profile = jax.profiler.trace(str(folder), create_perfetto_trace=True)
                around.enter_context(profile)
            with jax.profiler.StepTraceAnnotation("train", step_num=span[-1] + 1):
                result = self.job.step(state, batch, len(span))
            if fresh or profiled or self._one_by_one:
                jax.block_until_ready(result)
        if fresh or profiled:  # no part of the rates
            recorder.pause(time.perf_counter() - begin)
        if profiled:
            self.bar.note(f"step {span[-1] + 1} is profiled: {folder}")
        return result

    def _need_finite(self, state, step, values, batch):
        """Raises where too many steps in a row were skipped."""
        limit = self.job.config.guard.skipped_steps
        if int(values["skipped_in_a_row"]) < limit:
            return
        with self.watchdog.paused():
            where = self.job.explain(self.workdir, state, batch, step)
        raise _NotFinite(
            f"loss or gradient not finite at step {step}, {limit} steps in a row"
            f"{where}. The last checkpoint is from before; in another --workdir try"
            f" {self.job.cure}",
            step,
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
        return found

    def _leave(self, step):
        """Ends a job that was told to stop, once all is saved."""
        with self.watchdog.paused():
            self.checkpoints.wait()
        self.bar.note(
            f"stopped and saved at step {step} of {self.job.total}; the same command"
            " continues"
        )
        self._stop.leave(self._stop.signal or signal.SIGTERM)  # of another process


class _NotFinite(Exception):
    """Loss or gradient were not finite for too many steps in a row."""

    def __init__(self, message, step):
        super().__init__(message)
        self.step = step


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
