"""The processes of a run watch each other, so that all stop, with a message, when one fails or is killed.

A process that waits for another in an exchange of tensors cannot be told by Python that it is gone: with NCCL
it waits for minutes, on several machines for as long as the timeout of the group. So every process keeps
a connection to the first one. A process that fails says so before anything else. If it dies, or its machine
does, the system closes the connection. The first process tells the others.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities.exceptions import SIGTERMException

logger = logging.getLogger("trunkline")

CONNECT = 20.0  # seconds to reach the first process
GRACE = 10.0  # seconds from the failure of another process to the end of this one
HANDLERS = 30.0  # seconds that a process has to handle its own error
KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))

Told = Callable[[int, str], None]


class Peers:
    """Connections between the processes of a run.

    Args:
        rank: of this process.
        told: called once, in a thread, with rank and message of the first process that has failed or is gone.
    """

    def __init__(self, rank: int, told: Told) -> None:
        self.rank = rank
        self._told = told
        self._lock = threading.Lock()
        self._over = False  # one failure is enough
        self._sockets: dict[int, socket.socket] = {}  # by rank; of a process other than the first only 0
        self._listening: socket.socket | None = None
        os.register_at_fork(after_in_child=self._close)  # loader processes would hold them open

    # -- the first process

    def listen(self) -> tuple[int, str]:
        """Wait for the other processes; return the port, and the word that they have to know."""
        self._listening = socket.create_server(("", 0), backlog=1024)
        word = secrets.token_hex(16)
        threading.Thread(target=self._serve, args=(word,), daemon=True, name="peers").start()
        return self._listening.getsockname()[1], word

    def _serve(self, word: str) -> None:
        assert self._listening is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._listening:
                        connection, _ = self._listening.accept()
                        if (rank := _introduced(connection, word)) is None:
                            connection.close()
                        else:
                            self._sockets[rank] = connection
                            selector.register(connection, selectors.EVENT_READ, rank)
                    elif not self._hear(key.fileobj, key.data):
                        selector.unregister(key.fileobj)

    # -- all processes

    def connect(self, address: str, port: int, word: str) -> None:
        """Reach the first process.

        Raises:
            OSError: if it cannot be reached.
        """
        connection = socket.create_connection((address, port), timeout=CONNECT)
        connection.settimeout(None)
        _keep_alive(connection)
        connection.sendall(f"{word} {self.rank}\n".encode())
        self._sockets[0] = connection
        threading.Thread(target=self._listen_to_first, args=(connection,), daemon=True, name="peers").start()

    def _listen_to_first(self, connection: socket.socket) -> None:
        while self._hear(connection, 0):
            pass

    def _hear(self, connection: Any, rank: int) -> bool:
        """Take one message; return whether there may be more."""
        line = _line(connection)
        if line == "bye":
            return False
        if not line:
            self._pass_on(rank, "it has ended without a word (killed, out of memory, or its machine is gone)")
            return False
        found = json.loads(line)
        self._pass_on(int(found["rank"]), str(found["message"]))
        return True

    def _pass_on(self, rank: int, message: str) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        self._send(json.dumps({"rank": rank, "message": message}))
        if rank != self.rank:
            self._told(rank, message)

    def failed(self, message: str) -> None:
        """Tell the other processes that this one has failed."""
        self._pass_on(self.rank, message)

    def leave(self) -> None:
        """Tell the others that this process ends as it should."""
        self._over = True
        self._send("bye")

    def _send(self, line: str) -> None:
        for connection in list(self._sockets.values()):
            with contextlib.suppress(OSError):
                connection.sendall(f"{line}\n".encode())

    def _close(self) -> None:
        """Close in a forked process what only its parent uses."""
        self._over = True
        for connection in (self._listening, *self._sockets.values()):
            if connection is not None:
                connection.close()


def _keep_alive(connection: socket.socket) -> None:
    """Let the system notice within half a minute that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _introduced(connection: socket.socket, word: str) -> int | None:
    """Return the rank of a process that knows the word; None for a stranger."""
    _keep_alive(connection)
    connection.settimeout(5)
    try:
        said, _, rank = _line(connection).partition(" ")
    except OSError:
        return None
    connection.settimeout(None)
    return int(rank) if secrets.compare_digest(said.encode(), word.encode()) and rank.isdecimal() else None


def _line(connection: socket.socket, most: int = 10_000) -> str:
    """Read up to a line break; empty at the end of the connection."""
    found = b""
    while not found.endswith(b"\n") and len(found) < most:
        try:
            byte = connection.recv(1)
        except TimeoutError:
            raise
        except OSError:
            return ""
        if not byte:
            return ""
        found += byte
    return found.decode(errors="replace").strip()


class EndTogether(Callback):
    """Ends all processes of a run when one of them fails; every task brings it.

    Where another process has failed, this one has :data:`GRACE` seconds to end by itself, by an error of its
    exchange. Where this one has failed, it has :data:`HANDLERS` seconds for the handlers of its error.
    """

    _peers: Peers | None = None  # of the process, as its group is
    _running: Any = None  # the trainer that was started last

    def __init__(self, trainer: Any = None) -> None:
        if trainer is not None and trainer.world_size > 1:
            EndTogether._running = trainer
            self._begin_with_the_group(trainer)

    def _begin_with_the_group(self, trainer: Any) -> None:
        """Begin right after the group is there: what follows, such as preparing data, may fail already."""
        strategy, make = trainer.strategy, trainer.strategy.setup_environment

        def made() -> None:
            make()
            del strategy.setup_environment  # the method of the class again
            trainer.callbacks.remove(self)
            trainer.callbacks.insert(0, self)  # the others' handlers of errors may take long
            self._begin(trainer)

        strategy.setup_environment = made

    def _begin(self, trainer: Any) -> None:
        if EndTogether._peers is not None or not (dist.is_available() and dist.is_initialized()):
            return
        peers = Peers(trainer.global_rank, self._told)
        offered = peers.listen() if trainer.global_rank == 0 else (0, "")
        port, word = trainer.strategy.broadcast(offered)
        if trainer.global_rank:
            try:
                peers.connect(os.environ.get("MASTER_ADDR", "127.0.0.1"), port, word)
            except OSError as error:
                logger.warning(
                    "process %d cannot reach the first one at port %d (%s): if one of them fails, the others "
                    "notice it only by the timeout of their exchanges", trainer.global_rank, port, error,
                )  # fmt: skip
        EndTogether._peers = peers
        atexit.register(end_processes, os.getpid(), peers)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other processes, and see to it that this one ends."""
        if EndTogether._peers is None or isinstance(exception, SIGTERMException):
            return
        text = str(exception).strip()
        EndTogether._peers.failed(f"{type(exception).__name__}: {text[:2000]}")
        _after(HANDLERS, lambda: self._end(trainer, f"its error was not handled within {HANDLERS:.0f} s"))

    def _told(self, rank: int, message: str) -> None:
        trainer = EndTogether._running
        if trainer.state.status != TrainerStatus.RUNNING:
            return
        _say(f"process {rank} has failed, so process {trainer.global_rank} stops too: {message}")
        _after(GRACE, lambda: self._end(trainer, f"it waited for process {rank}"))

    @staticmethod
    def _end(trainer: Any, why: str) -> None:
        """End the process, unless the trainer has come to an end meanwhile."""
        failed = trainer.state.status == TrainerStatus.INTERRUPTED
        if trainer.state.status == TrainerStatus.FINISHED or (failed and trainer.state.stage is None):
            return
        _say(f"process {trainer.global_rank} is ended: {why}")
        sys.stdout.flush()
        os._exit(1)


def _say(text: str) -> None:
    print(f"\ntrunkline: {text}", file=sys.stderr, flush=True)


def _after(seconds: float, action: Callable[[], None]) -> None:
    def wait() -> None:
        time.sleep(seconds)
        action()

    threading.Thread(target=wait, daemon=True, name="stop together").start()


def end_processes(process: int, peers: Peers) -> None:
    """Leave the group as it should be left: threads of it that still run abort a process that ends.

    Args:
        process: id of the process that has joined it; its forks do nothing.
        peers: of that process.
    """
    if os.getpid() != process:
        return
    peers.leave()
    if dist.is_initialized():
        # A group of which a process is gone may wait for it.
        ending = threading.Thread(target=dist.destroy_process_group, daemon=True)
        ending.start()
        ending.join(GRACE)
