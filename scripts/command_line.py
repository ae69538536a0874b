"""What the scripts share: one clear line and exit code 2 on bad input, and one line when they are interrupted."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """
    Turns errors about files and arguments into one line on standard error and exit code 2, and an interruption
    (SIGINT, Ctrl-C) into one line and the exit code 130 that shells give it.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        tqdm.write(f"{program}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        tqdm.write(f"{program}: interrupted", file=sys.stderr)  # not behind a progress bar
        raise SystemExit(130) from None
