"""A reader under test: how it is called, and what may come out of it."""

from __future__ import annotations

import logging
import random
import resource
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10  # of processor time that an input may take
MIB = 1 << 20
CORPUS = Path(__file__).parent / "corpus"
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "can't allocate", "not enough memory")

Mutate = Callable[[bytes, random.Random], bytes]


class Finding(Exception):
    """A reader let something out that it must not.

    Attributes:
        kind: names it, so that a campaign tells it once.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the target, and of its folder in the corpus.
        file: the name under which an input is written.
        read: gives the file to the reader, the way a run does.
        errors: the types that the reader documents. Each message has to name the file.
        seeds: returns valid files, each a few KiB at most.
        mutate: changes an input, knowing its form.
        memory: MiB that an input may take beside what the process has.
        largest: bytes of an input.
        prepare: writes what else a folder needs, once.
        folder: whether the reader gets the folder of the file, so that messages may name that.
    """

    name: str
    file: str
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate
    memory: int = 256
    largest: int = 16384
    prepare: Callable[[Path], None] = field(default=lambda folder: None)
    folder: bool = False

    def check(self, data: bytes, folder: Path) -> str:
        """Give one input to the reader; return the name of the error that it raised, "" if it read the file.

        Args:
            data: content of the file.
            folder: where the file is written; ``prepare`` has been there.

        Raises:
            Finding: if something else than the documented errors comes out, a message does not name the file,
                or memory was lacking.
        """
        path = folder / self.file
        path.write_bytes(data)
        with _heard():
            try:
                self.read(path)
            except self.errors as error:
                self._judge(error, path)
                return type(error).__name__
            except Exception as error:
                raise Finding(_kind(error), f"{type(error).__name__}: {error!r:.500}") from error
        return ""

    def _judge(self, error: Exception, path: Path) -> None:
        text = str(error)
        if path.name not in text and not (self.folder and str(path.parent) in text):
            raise Finding(f"unnamed {_kind(error)}", f"the message does not name the file: {text[:500]}")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError) or any(word in str(cause) for word in _OUT_OF_MEMORY):
                raise Finding(f"memory {_kind(error)}", f"memory was lacking: {cause!r:.500}")
            cause = cause.__cause__ or cause.__context__

    def corpus(self) -> list[Path]:
        """Return the inputs that were findings once."""
        return sorted((CORPUS / self.name).glob("*"))


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(error: BaseException) -> str:
    """Return the type of an error and the functions it passed: the last of the package, and the last."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    own = [place for place in places if "/site-packages/" not in place.co_filename and "/fuzz/" not in
           place.co_filename and "/lib/python" not in place.co_filename]  # fmt: skip
    names = [f"{Path(place.co_filename).name}:{place.co_name}" for place in (*own[-1:], *places[-1:])]
    return " ".join([type(error).__name__, *dict.fromkeys(names)])


@contextmanager
def _heard() -> Iterator[None]:
    """Let warnings of the package be formatted, and be printed nowhere."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.getMessage()

    logger, listener = logging.getLogger("trunkline"), Listener(logging.WARNING)
    handlers, logger.handlers, propagate, logger.propagate = (
        logger.handlers,
        [listener],
        logger.propagate,
        False,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
