"""What Python's collector of garbage need not look at in a process that serves for long."""

import atexit
import gc

__all__ = ["freeze_heap"]


def freeze_heap() -> None:
    """Has the collector pass over what there is by now, as vLLM's own server does at its start.

    vLLM, torch and JAX leave a million objects, JAX alone 200,000, and looking through all of them
    holds up the event loop, and with it every request, for half a second and a tenth.
    """
    gc.collect()
    gc.freeze()
    # Libraries complain at the end about what is never collected.
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)
