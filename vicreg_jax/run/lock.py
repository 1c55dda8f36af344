"""Who writes into a folder: one process at a time, on disks of any kind and in buckets.

The file .lock.json in the folder says who holds it and since when. Whether a holder on
this machine lives is asked of the system, so what was killed holds nothing. Of a holder
elsewhere nothing can be asked; it gives a sign of life every few seconds, and after
`LEASE` seconds without one it has lost the folder. No clock is compared with another.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Refusal, Unusable

__all__ = ["LEASE", "NAME", "Lease", "Lock"]

NAME = ".lock.json"
LEASE = 60.0  # seconds without a sign of life
SIGN = 10.0  # seconds between two


class Lock:
    """Holds a folder, as a context.

    A holder elsewhere is watched for up to `LEASE` seconds before it is refused or
    replaced. Who loses the folder, as a machine does that was asleep for that long,
    ends at its next sign: another goes on.

    Args:
      folder: which exists.

    Raises, on entering:
      Refusal: another process holds it.
      Unusable: it cannot be written to.
    """

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder / NAME
        self._own = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M"),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "id": uuid.uuid4().hex,
            "sign": 0,
        }
        self._left = threading.Event()
        self._signs = threading.Thread(target=self._sign, name="lock", daemon=True)

    def __enter__(self) -> "Lock":
        try:
            self._own["folder"] = self._identity()
            while not self._made():
                self._wait()
        except Refusal:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise Unusable(f"{self._folder} cannot be written to: {reason}") from error
        self._signs.start()
        return self

    def __exit__(self, *_):
        self._left.set()
        self._signs.join()
        if (_read(self._path) or {}).get("id") == self._own["id"]:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _identity(self):
        """Returns what tells this folder from one that its file was copied into."""
        return self._folder.stat().st_ino

    def _made(self):
        """Makes the file, whole at once; returns False where there is one."""
        draft = self._draft()
        try:
            os.link(draft, self._path)
        except FileExistsError:
            return False
        except OSError:  # a disk without links, as a mounted bucket
            try:
                with self._path.open("x") as file:
                    file.write(draft.read_text())
            except FileExistsError:
                return False
        finally:
            draft.unlink()
        return True

    def _draft(self):
        path = self._folder / f"{NAME}.{self._own['id']}"
        path.write_text(json.dumps(self._own))
        return path

    def _wait(self):
        """Returns once the holder is gone, or dead and its file removed."""
        holder = first = _read(self._path)
        if first and first.get("machine") == self._own["machine"]:
            copied = first.get("folder") != self._own["folder"]  # with another's file
            if _lives(first) and not copied:
                self._refuse(first)
            self._remove(first)
            return
        if first is not None:
            sys.stderr.write(
                f"{self._folder} is held by {_words(first)}; waiting up to"
                f" {LEASE:.0f} s for a sign of life\n"
            )
        end = time.monotonic() + LEASE
        while holder == first and holder is not None:
            if time.monotonic() > end:
                self._remove(first)
                return
            time.sleep(min(1.0, LEASE / 10))
            holder = _read(self._path)
        if holder:  # another sign, or another process
            self._refuse(holder)

    def _refuse(self, holder):
        raise Refusal(
            f"{self._folder} is held by {_words(holder)}; wait for it, end it, or"
            " choose another --workdir"
        )

    def _remove(self, dead):
        """Removes the file of a dead holder, not that of one who has just come."""
        aside = self._folder / f"{NAME}.{uuid.uuid4().hex}"
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        if _read(aside) != dead:
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink()

    def _sign(self):
        while not self._left.wait(SIGN):
            holder = _read(self._path)
            if holder and holder.get("id") != self._own["id"]:
                sys.stderr.write(
                    f"vicreg_jax: {self._folder} was taken over by {_words(holder)},"
                    " which goes on; this process ends\n"
                )
                os._exit(2)
            self._own["sign"] += 1
            with contextlib.suppress(OSError):
                self._renew()

    def _renew(self):
        """Replaces the file by one of the next sign."""
        self._draft().replace(self._path)


class Lease(Lock):
    """Holds a folder in a bucket, as a context: see `Lock`.

    Each change is one request that the bucket refuses where somebody else's came first.
    """

    def _identity(self):
        return str(self._folder)

    def _made(self):
        held, version = self._path.held()
        made = held is None and self._path.put(self._content(), over=version)
        # A request whose answer is lost is made again, and then refused.
        return made or self._path.held()[0] == self._content()

    def _remove(self, dead):
        _, version = self._path.held()
        if _read(self._path) == dead:
            self._path.put(None, over=version)

    def _renew(self):
        held, version = self._path.held()
        if held is None or files.parse_json(held).get("id") == self._own["id"]:
            self._path.put(self._content(), over=version)

    def _content(self):
        return json.dumps(self._own).encode()


def _read(path) -> Mapping[str, Any] | None:
    """Returns who holds the folder, {} where that cannot be read, None for nobody.

    The file is opened anew each time: a network disk then asks for what is there now.
    """
    try:
        return files.read_json(path, {})
    except NotFound:
        return None
    except Unusable:
        return {}


def _words(holder):
    if not holder:
        return "a process whose entry cannot be read"
    since = f"since {holder.get('since')}"
    return f"process {holder.get('process')} on {holder.get('host')} {since}"


def _machine():
    """Returns what tells this machine, as last started, and its processes' numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _lives(holder):
    """Tells whether a process of this machine lives, no later one of its number."""
    process = holder.get("process")
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    return _started(process) == holder.get("started")


def _started(process):
    """Returns when a process began, in ticks; "" of one that has ended, or no /proc."""
    try:
        after = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after[0] == "Z" else after[19]
