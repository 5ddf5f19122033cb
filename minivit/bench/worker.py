"""The process in which kernels are timed. It settles on its threads and cores, and only then is torch imported."""

from __future__ import annotations

from multiprocessing.connection import Connection

from minivit.bench import machine


def serve(connection: Connection, room: str, threads: int, seconds: float, memory: int, device: str) -> None:
    """Answer the requests of `room`, timing or model, with `threads` threads; a target for isolate.Child."""
    machine.settle(threads)
    from minivit.bench import model, timing

    {"timing": timing.serve, "model": model.serve}[room](connection, threads, seconds, memory, device)
