"""The worker of `checker.py`: one JSON string in, one form out, until the input ends."""

import json
import logging
import os
import sys
import threading
import time

# Run as a folder, without the package, whose imports take seconds and hundreds of MB.
from forms import read_form


def _end_with(parent: int) -> None:
    """Ends this process with its parent, which may be killed while an answer is read."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Answers requests until the input ends."""
    import resource

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.disable(logging.ERROR)
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    limit = 2 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        try:
            form = read_form(json.loads(line))
        # An answer is arbitrary text, and what it raises in a library is as arbitrary.
        except (Exception, RecursionError, MemoryError):
            form = None
        print(json.dumps(form), file=replies, flush=True)


if __name__ == "__main__":
    main()
