r"""The process that compares answers with math-verify: one JSON line in, one out.

Started as a script by `checker.py`, never imported, so that it loads math-verify and nothing else.
A request is `["gold", "answer"]`, a reply `true` or `false`; the first line out is `"ready"`, or a
string that says why there is no math-verify. It may hang or run out of memory, for which whoever
started it kills it.
"""

import functools
import json
import logging
import os
import resource
import sys
import threading
import time

# The memory that 10^(10^9) wants is gone before a time limit notices.
MEMORY_LIMIT = 4 << 30


def _end_with(parent: int) -> None:
    """Ends this process with its parent, which may be killed while an answer is compared."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Answers requests until the input ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    replies = sys.stdout
    # Whatever a library prints must not be taken for a reply.
    sys.stdout = sys.stderr
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(json.dumps(f"math-verify cannot be imported ({error})"), file=replies, flush=True)
        return
    # It warns that it has no time limit, once a call; the limit is the parent's.
    logging.disable(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))

    @functools.lru_cache(maxsize=4096)
    def parsed(answer: str):
        # It looks for mathematics between anchors, as a completion has them.
        return parse(f"${answer}$", parsing_timeout=0)

    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            equal = bool(verify(parsed(gold), parsed(answer), timeout_seconds=None))
        # Whatever it cannot read is not shown to be equal. An answer is arbitrary text, and what
        # the parser, SymPy and the limits above raise for it is as arbitrary.
        except (Exception, RecursionError, MemoryError):
            equal = False
        print(json.dumps(equal), file=replies, flush=True)


if __name__ == "__main__":
    main()
