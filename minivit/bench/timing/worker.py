"""The process in which kernels are timed. It settles on its threads and cores, and only then is torch imported."""

from __future__ import annotations

from importlib import import_module
from multiprocessing.connection import Connection

from minivit.bench.timing import machine


def serve(connection: Connection, server: str, threads: int, seconds: float, memory: int, device: str) -> None:
    """Settle on `threads` threads, then let the module `server` answer the requests; a target for sandbox.Child.

    The module is given by name, because importing it imports torch, which must come after the threads are set.
    """
    machine.settle(threads)
    import_module(server).serve(connection, threads, seconds, memory, device)
