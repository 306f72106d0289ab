"""pithctl on a terminal of its own, in a process of its own."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.router.cli.conftest import clean_environment

# Wall time for what a loaded machine may take its time with; nothing waits for it to pass.
PATIENCE_SECONDS = 60.0


@dataclass
class Screen:
    """A terminal with pithctl on it, and all that was written to it."""

    process: subprocess.Popen[bytes]
    terminal: int
    written: str = field(default="")

    def until(self, *wanted: str) -> None:
        """Until all of these have been written since the last call."""
        seen = ""
        while not all(text in seen for text in wanted):
            ready, _, _ = select.select([self.terminal], [], [], PATIENCE_SECONDS)
            assert ready, (wanted, seen)
            piece = os.read(self.terminal, 65536).decode()
            seen += piece
            self.written += piece

    def press(self, key: str) -> None:
        os.write(self.terminal, key.encode())

    def end(self) -> int:
        """Its exit code."""
        while True:
            try:
                piece = os.read(self.terminal, 65536)
            # Reading a terminal whose other end has closed is an error on Linux.
            except OSError:
                break
            if not piece:
                break
            self.written += piece.decode()
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def on_terminal(*arguments: str, columns: int = 100, **variables: str) -> Iterator[Screen]:
    """Runs a command line until the block ends, or it does.

    Args:
        variables: of its environment.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean_environment(), "TERM": "xterm", **variables},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Screen(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
