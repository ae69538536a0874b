"""Processes that share the work of a program, and end with the one that started them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait


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
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _end_with_parent) as executor:
        try:
            yield executor
        except BrokenExecutor:
            raise OSError(
                "expected workers to stay alive, but one was killed, perhaps for lack of memory: run again with a "
                "lower --num_workers"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Has this worker end when the process that started it is gone: its output is a later run's then."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
