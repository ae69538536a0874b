"""Processes that share the work of a program, and end with the one that started them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait


@contextmanager
def local_executor(
    num_workers: int, flag: str = "--num_workers", begin: Callable[[], None] | None = None
) -> Iterator[Executor | None]:
    """Processes of this machine, or None for one worker, which is the calling process itself.

    Args:
        num_workers: how many.
        flag: the argument that says so, for the error.
        begin: what a worker does before its first piece of work.

    Raises:
        OSError: a worker was killed, as for lack of memory.
    """
    if num_workers <= 1:
        yield None
        return
    # Started afresh: threads of the raster and Parquet libraries do not survive a fork, nor does CUDA.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), _begin, (begin,)) as executor:
        try:
            yield executor
        except BrokenExecutor:
            raise OSError(
                "expected workers to stay alive, but one was killed, perhaps for lack of memory: run again with a "
                f"lower {flag}"
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(begin: Callable[[], None] | None) -> None:
    """Has this worker end when the process that started it is gone: its output is a later run's then."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin()
