"""The Hugging Face hub, by its own client, which only this module uses; it also resumes downloads of large files.

The client itself no longer resumes them (huggingface_hub pull request 4306: every download begins a new temporary
file), and a U-Net is five gigabytes. So large files are fetched here, by the client's own ranged download, into its
own cache under the name that it would give them. A lock keeps several processes from doing so at once, and the SHA-256
shows that nothing went wrong.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from kandinsky22.checkpoints.catalog import File, Repository
from kandinsky22.checkpoints.hub_client import AccessDeniedError, UnreachableError
from kandinsky22.checkpoints.json_files import CheckpointError

LARGE = 10 << 20  # bytes of a file that is worth resuming


@dataclass(frozen=True, slots=True)
class HuggingFace:
    """The hub at `endpoint`, the cache in `cache` and the access token; None uses the client's environment.

    That is HF_ENDPOINT, HF_HOME and HF_TOKEN.

    quiet: show no progress bars.
    """

    endpoint: str | None = None
    cache: Path | None = None
    quiet: bool = False
    token: str | None = None

    @property
    def folder(self) -> Path:
        """Where the cache is."""
        from huggingface_hub import constants

        return self.cache or Path(constants.HF_HUB_CACHE)

    def cached(self, repository: Repository, path: str) -> Path | None:
        """A file in the cache, or None. Sends no request."""
        from huggingface_hub import try_to_load_from_cache

        path_or_marker = try_to_load_from_cache(
            repository.name, path, cache_dir=self.folder, revision=repository.revision
        )
        return Path(path_or_marker) if isinstance(path_or_marker, str) else None

    def partial_bytes(self, repository: Repository, file: File) -> int:
        """How many bytes of a file are here: of an interrupted download, or all of it from another commit."""
        part = self.partial_path(repository, file)
        return next((path.stat().st_size for path in (part.with_suffix(""), part) if path.exists()), 0)

    def list(self, name: str, revision: str) -> Repository:
        """A repository at a commit, with the size of all its files, and the SHA-256 of the large."""
        from huggingface_hub import HfApi

        self._check_reachable()
        with _translate_errors():
            info = HfApi(endpoint=self.endpoint, token=self.token).model_info(
                name, revision=revision, files_metadata=True
            )
        files = (File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ())
        return Repository(name, info.sha or revision, tuple(files))

    def download(self, repository: Repository, file: File, twin: Path | None) -> Path:
        """Download a file to the cache; the client shows a progress bar on stderr."""
        from huggingface_hub import hf_hub_download

        self._check_reachable()
        with _translate_errors(), _progress_bars(not self.quiet):
            if file.sha256 and file.bytes >= LARGE:
                self._download_content(repository, file, twin)
            return Path(
                hf_hub_download(
                    repository.name,
                    file.path,
                    revision=repository.revision,
                    cache_dir=self.folder,
                    endpoint=self.endpoint,
                    token=self.token,
                )
            )

    def _check_reachable(self) -> None:
        """Raises `UnreachableError` if the hub's name does not resolve, where the client tries for half a minute."""
        from huggingface_hub import constants

        host = urlsplit(self.endpoint or constants.ENDPOINT).hostname
        if host and not getproxies() and not constants.HF_HUB_OFFLINE:
            try:
                socket.getaddrinfo(host, None)
            except OSError as error:
                raise UnreachableError(f"{host}: {error.strerror or error}") from error

    def _download_content(self, repository: Repository, file: File, twin: Path | None) -> None:
        """Put a large file's content where the client looks for it, under its SHA-256."""
        from filelock import FileLock
        from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

        part = self.partial_path(repository, file)
        content = part.with_suffix("")
        lock = self.folder / ".locks" / part.parents[1].name / f"{file.sha256}.lock"  # the client's own
        for needed in (part, lock):
            needed.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if content.exists():  # another process has fetched it meanwhile
                return
            if twin is not None:
                with suppress(OSError):  # a disk without hard links
                    os.link(twin.resolve(), content)
                    return
            url = hf_hub_url(repository.name, file.path, revision=repository.revision, endpoint=self.endpoint)
            offered = get_hf_file_metadata(url, endpoint=self.endpoint, token=self.token).etag
            if offered != file.sha256:
                raise CheckpointError(
                    f"{file.path} of {repository.name} is not the file that was published: the hub offers {offered}, "
                    f"not {file.sha256}; nothing was fetched"
                )
            headers = {"accept-encoding": "identity"}
            if token := self.token or get_token():  # the client does not send it to where the hub redirects
                headers["authorization"] = f"Bearer {token}"
            with part.open("ab") as to:
                if to.tell() > file.bytes:
                    to.truncate(0)
                _resume(to, url, file.bytes, headers, f"{repository.name.rpartition('/')[2]}/{file.path}")
                os.fsync(to.fileno())
            part.replace(content)

    def partial_path(self, repository: Repository, file: File) -> Path:
        """Where a large file is while its download is unfinished."""
        return self.folder / f"models--{repository.name.replace('/', '--')}" / "blobs" / f"{file.sha256}.kandinsky22"


def _resume(to: BinaryIO, url: str, length: int, headers: Mapping[str, str], name: str) -> None:
    """Append the rest of a file; if the connection breaks, try again as long as more of it arrives each time."""
    from huggingface_hub.file_download import http_get

    while True:
        start = to.seek(0, os.SEEK_END)
        try:
            http_get(url, to, resume_size=start, headers=dict(headers), expected_size=length, displayed_filename=name)
            return
        except _connection_error() as error:
            if to.seek(0, os.SEEK_END) <= start:
                raise UnreachableError(
                    f"{_first_line(error)}; to resume the download, run the same command again"
                ) from error


def _connection_error() -> type[Exception]:
    """The base of connection errors in the library that this version of the client is built on: httpx or httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    return cast(type[Exception], HfHubHTTPError.__bases__[0])


@contextmanager
def _progress_bars(visible: bool) -> Iterator[None]:
    """Hide the client's progress bars within the block, unless they are to be visible."""
    from huggingface_hub import utils

    if visible or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]  # documented, but not exported by name
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn the client's exceptions into this package's."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"the hub has no such commit or branch any more: {_first_line(error)}") from error
    except errors.RepositoryNotFoundError as error:  # also private and gated ones, and a bad token
        raise AccessDeniedError(_first_line(error)) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise AccessDeniedError(_first_line(error)) from error
        raise UnreachableError(_first_line(error)) from error
    except errors.LocalEntryNotFoundError as error:
        raise UnreachableError(_first_line(error.__cause__ or error)) from error
    except (_connection_error(), OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise  # the local disk, not the connection
        raise UnreachableError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """The first line of a message, without its full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip().rstrip(".")
