"""The signals that ask a process to end."""

import os
import signal
import stat

__all__ = ["leave_terminal", "terminations"]


def terminations() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, signal.SIGHUP]


def leave_terminal() -> None:
    """Sends what is printed nowhere if the terminal is gone, whose error would end the work."""
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
