"""Files at addresses such as ``s3://bucket/name``, read through fsspec, with retries and plain errors.

Nothing is kept between calls: fsspec makes one filesystem per process and hands it out again, and after a
fork it starts a loop and connections of its own. So loader processes may be forked or spawned.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

ATTEMPTS = 4
PAUSES = (0.5, 2.0, 6.0)  # seconds between them; the packages of fsspec also retry on their own
LARGEST = 1 << 30  # bytes of one image or annotation file that are taken into memory

WEB = ("http", "https")

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_PACKAGES = {
    "s3": "'trunkline[s3]'", "s3a": "'trunkline[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp",
    "https": "aiohttp", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "oci": "ocifs",
    "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko", "hdfs": "pyarrow",
}  # fmt: skip
_ENVIRONMENT = {
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and FSSPEC_S3_ENDPOINT_URL for MinIO",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
# What asking again does not change.
_FINAL = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError,
    NotImplementedError, ValueError, TypeError, MemoryError,
)  # fmt: skip

Answer = TypeVar("Answer")


class StorageError(OSError):
    """An address cannot be read now, such as for a lost connection; the message names it and what to do."""


class ObjectError(StorageError):
    """What an address names is not there, may not be read, or is nothing that can be read."""


class Info(NamedTuple):
    """What is known of an address without reading it.

    Attributes:
        size: in bytes; -1 if the server does not tell.
        folder: whether it is a folder.
        tag: text that changes with the content: the server's tag, or the time of the last change.
    """

    size: int
    folder: bool
    tag: str


def scheme_of(text: str) -> str:
    """Return the scheme of an address, such as ``s3``; empty for a path."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


def info_of(address: str) -> Info | None:
    """Return what is known of a file or folder; None if there is none.

    Raises:
        StorageError: if it cannot be found out.
    """

    def known(filesystem: Any, path: str) -> Info:
        found = _info(filesystem.info(path))
        # To a web server a folder is a page; one that lists its files is known by its links.
        page = scheme_of(address) in WEB and "." not in path.rpartition("/")[2]
        return found._replace(folder=True) if page and filesystem.isdir(path) else found

    try:
        return ask(address, known)
    except FileNotFoundError:
        return None


def read_object(address: str, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes ``start`` to ``end`` of a file, all by default; fewer if it ends before.

    Raises:
        ObjectError: if it is missing, may not be read, or has more than ``LARGEST`` bytes.
        StorageError: if it could not be read after ``ATTEMPTS`` attempts.
    """
    wanted = start + LARGEST + 1 if end is None else end
    try:
        content: bytes = ask(address, lambda fs, path: fs.cat_file(path, start=start, end=wanted))
    except FileNotFoundError as error:
        raise ObjectError(
            f"{address}: no such file; check the address, and the file name in the annotations"
        ) from error
    except IsADirectoryError as error:
        raise ObjectError(f"{address}: is a folder, not a file") from error
    if len(content) > wanted - start:  # a server that cannot send parts sends everything
        content = content[start:wanted]
    if end is None and len(content) > LARGEST:
        raise ObjectError(f"{address}: has more than {LARGEST:,} bytes; cut it into smaller files")
    return content


def files_below(address: str, inside: bool = True) -> list[str]:
    """Return the names of the files in a folder, relative to it.

    Args:
        address: of the folder.
        inside: whether to list those of the folders inside too.

    Raises:
        StorageError: if it cannot be listed.
    """

    def listed(filesystem: Any, path: str) -> list[str]:
        found = filesystem.find(path, maxdepth=None if inside else 1)
        start = len(path.rstrip("/")) + 1
        return [name[start:] for name in found]

    try:
        names = ask(address, listed)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectError(f"{address}: no such folder; check the address") from error
    if scheme_of(address) in WEB:
        names = [unquote(name) for name in names]
    return [name for name in names if name and not name.endswith("/")]  # such objects stand for folders


def matching(pattern: str) -> dict[str, Info]:
    """Return the files that match an address with ``*``, ``?`` or ``[...]``, in the order of their names.

    Raises:
        StorageError: if it cannot be listed.
    """

    def listed(filesystem: Any, path: str) -> dict[str, Info]:
        found = filesystem.glob(path, detail=True)
        return {filesystem.unstrip_protocol(name): _info(found[name]) for name in sorted(found)}

    try:
        return ask(pattern, listed)
    except FileNotFoundError:
        return {}


def ask(address: str, question: Callable[[Any, str], Answer]) -> Answer:
    """Ask something of the filesystem of an address, again where a connection or the server fails.

    Args:
        address: with its scheme.
        question: takes the filesystem and the path in it.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: as the filesystem says.
        ObjectError: if permission or a package is missing, or the scheme is unknown.
        StorageError: if nothing was answered after ``ATTEMPTS`` attempts.
    """
    import fsspec

    for pause in (*PAUSES[: ATTEMPTS - 1], None):
        try:
            filesystem, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
            return question(filesystem, path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except _FINAL as error:
            raise ObjectError(_why(address, error)) from error
        except Exception as error:  # of sockets, time limits, HTTP and the client libraries, each of its own
            if isinstance(error, OSError) and error.errno == errno.EINVAL:  # the range of an empty file
                return _answer_for_empty(address, error)
            if pause is None:
                raise StorageError(
                    f"{address}: could not be read in {ATTEMPTS} attempts ({type(error).__name__}: {error}); "
                    f"check the network, the name of the server and its access{_access(address)}"
                ) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _answer_for_empty(address: str, error: OSError) -> Any:
    found = info_of(address)
    if found is not None and found.size == 0:
        return b""
    raise ObjectError(f"{address}: the server refused to send a part ({error})") from error


def _info(found: dict[str, Any]) -> Info:
    size = found.get("size")
    names = (
        "ETag",
        "etag",
        "md5Hash",
        "crc32c",
        "version_id",
        "LastModified",
        "mtime",
        "last_modified",
        "created",
    )
    tags = [str(found[name]) for name in names if found.get(name)]
    return Info(-1 if size is None else int(size), found.get("type") == "directory", tags[0] if tags else "")


def _why(address: str, error: BaseException) -> str:
    """Say what is wrong with an address and what to do."""
    scheme = scheme_of(address)
    if isinstance(error, ImportError):
        package = _PACKAGES.get(scheme, "the package that it names")
        return f"{address}: addresses of {scheme}:// need a package ({error}): pip install {package}"
    if isinstance(error, PermissionError):
        return (
            f"{address}: may not be read ({error}); check the credentials{_access(address)}, and the address"
        )
    if "not known" in str(error):
        return f"{address}: {scheme}:// is no kind of address that fsspec knows; check the address"
    return f"{address}: cannot be read ({type(error).__name__}: {error}); check the address"


def _access(address: str) -> str:
    names = _ENVIRONMENT.get(scheme_of(address))
    return f" (in the environment: {names})" if names else ""
