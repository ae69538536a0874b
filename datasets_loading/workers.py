"""Processes that share the work of a program, and end with the one that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any


@contextmanager
def local_executor(num_workers: int) -> Iterator[Executor | None]:
    """So many processes of this machine, or None for one worker, which is the calling process itself.

    Raises:
        OSError: a worker was killed, as for lack of memory.
    """
    if num_workers <= 1:
        yield None
        return
    # Started afresh: threads of the raster and Parquet libraries do not survive a fork.
    with _Workers(num_workers, get_context("spawn"), _end_with_parent) as executor:
        try:
            yield executor
        except BrokenExecutor:
            time.sleep(1)  # a signal to all processes of a run may reach this one last, and ends it here
            raise OSError(
                "expected workers to stay alive, but one was killed, perhaps for lack of memory: run again with a "
                "lower --num_workers"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


class _Workers(ProcessPoolExecutor):
    """Processes that leave Ctrl-C, which reaches them too, to the one that starts them: no tracebacks of theirs."""

    def submit(self, *call: Any, **options: Any) -> Any:
        with suppress(AttributeError):  # Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes that start now inherit it
        try:
            return super().submit(*call, **options)
        finally:
            _hear_interrupts()


def _hear_interrupts() -> None:
    with suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """Has this worker end, by Ctrl-C or when the process that started it is gone: its output is a later run's then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _hear_interrupts()  # one that came while this worker started
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # what it was writing goes
    parent = parent_process()
    assert parent is not None
    if wait([parent.sentinel], 0):  # gone while this worker started, which would begin something before it knows
        os._exit(1)

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
