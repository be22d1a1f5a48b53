"""Weights from the hub: which files a task needs, whether the disk has space, and whether they are the published ones.

Everything is planned before anything is fetched. Files in the hub's own cache are used in place, so that other programs
share them; nothing is copied. This module talks to a `Hub` (`hub_client.py`); it imports no torch.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.catalog import File, Repository
from kandinsky22.checkpoints.hub_client import AccessDeniedError, Hub, UnreachableError
from kandinsky22.checkpoints.json_files import CheckpointError, read_text
from kandinsky22.checkpoints.verify import is_verified, verify
from kandinsky22.checkpoints.weight_names import WEIGHT_FILE, choose_weights
from kandinsky22.files import expand

Say = Callable[[str], None]

TEXT_TO_IMAGE = (catalog.PRIOR, catalog.DECODER)
MAX_CONFIG_BYTES = 16 << 20  # larger files that are no network's weights are not needed
SPARE_BYTES = 64 << 20  # to leave free on a disk
ENCODER_NOTE = (
    "; the image encoder, {} more, is fetched when it is needed: for input pictures, and once for guidance without a "
    "negative prompt"
)
ANNOUNCED_BYTES = 10**9  # whose verification takes seconds, and is announced
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)---[ \t]*(?:\n|$)", re.DOTALL)
PRIOR_LINE = re.compile(
    r"""^prior:[ \t]*(?:\[|\n[ \t]*-[ \t]+|(?=[^\s#]))[ \t]*['"]?([^'"\n,\]]+?)['"]?[ \t]*(?:[,\]]|[ \t]\#.*|$)""",
    re.MULTILINE,
)
REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class RemoteFile(NamedTuple):
    """A file of a repository."""

    repository: Repository
    file: File

    def __str__(self) -> str:
        return f"{self.file.path} of {self.repository.name}"


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What must be fetched before a model can be loaded.

    cached: the files in the hub's cache; missing: the others. bytes: of all of them, counting a content that several
    parts share once; bytes_to_fetch: those still to be fetched, less what an interrupted download has left. free:
    bytes on the disk of `folder`, the cache. note: what else to print.
    """

    name: str
    cached: Mapping[RemoteFile, Path]
    missing: Sequence[RemoteFile]
    bytes: int
    bytes_to_fetch: int
    folder: Path
    free: int
    note: str = ""

    def __str__(self) -> str:
        files = f"{len(self.missing)} file{'s' * (len(self.missing) != 1)}"
        total = f", of {size(self.bytes)} in all" if size(self.bytes) != size(self.bytes_to_fetch) else ""
        target = f"to {self.folder} ({size(self.free)} free there)"
        return f"fetching {self.name}: {size(self.bytes_to_fetch)} in {files}{total}, {target}{self.note}"

    def check_free_space(self) -> None:
        """Raises `CheckpointError` where the files would not fit on the disk."""
        if self.bytes_to_fetch + SPARE_BYTES > self.free:
            raise CheckpointError(
                f"fetching {self.name} takes {size(self.bytes_to_fetch)}, and {size(self.free)} is free for "
                f"{self.folder}; make room there, or set HF_HOME to a folder on a larger disk"
            )


def fetch(model: str, parts: Sequence[str] = TEXT_TO_IMAGE, *, say: Say, hub: Hub | None = None) -> dict[str, Path]:
    """The folders of a published model's parts; fetches the files that are missing, and no others.

    parts: of `catalog.PARTS`, and `catalog.IMAGE_ENCODER`: the prior comes without its image encoder otherwise. say:
    is called with a sentence on what will be fetched, how much, and how much space is free. Every file is compared
    with its published size and SHA-256, once on this machine, also if another program fetched it. Raises
    `CheckpointError`, one sentence: no hub, no space, another content, or access denied.
    """
    hub = hub or _hugging_face(f"or fetch the weights elsewhere, with {catalog.download_commands(model, parts)}")
    repositories = catalog.published()[model]
    with _explain_failures(model, catalog.download_commands(model, parts)):
        todo = plan_download(model, list(files_of(repositories, parts)), hub)
        if catalog.PRIOR in parts and catalog.IMAGE_ENCODER not in parts:
            encoder_bytes = sum(remote.file.bytes for remote in files_of(repositories, [catalog.IMAGE_ENCODER]))
            todo = replace(todo, note=ENCODER_NOTE.format(size(encoder_bytes)))
        return _roots(repositories, _fetch_files(todo, hub, say))


def plan_fetch(model: str, parts: Sequence[str] = TEXT_TO_IMAGE) -> DownloadPlan:
    """What `fetch` would do; sends no request. Raises `CheckpointError` without the hub's client."""
    files = list(files_of(catalog.published()[model], parts))
    return plan_download(model, files, _hugging_face("to know what is in its cache"))


def cached_parts(model: str) -> dict[str, Path]:
    """The folders of those parts of a published model that are complete in the hub's cache. Sends no request.

    A prior is complete without the image encoder, which many tasks do not need.
    """
    try:
        hub = _hugging_face("")
    except CheckpointError:
        return {}
    repositories = catalog.published()[model]
    folders: dict[str, Path] = {}
    for part in catalog.PARTS:
        paths = {remote: hub.cached(remote.repository, remote.file.path) for remote in files_of(repositories, [part])}
        cached = {remote: path for remote, path in paths.items() if path}
        if len(cached) == len(paths):
            folders |= _roots(repositories, cached)
    return folders


def plan_download(name: str, files: Iterable[RemoteFile], hub: Hub) -> DownloadPlan:
    """Which of `files` are cached and which must be fetched, small ones first: they fail soonest."""
    paths = {remote: hub.cached(remote.repository, remote.file.path) for remote in files}
    cached = {remote: path for remote, path in paths.items() if path}
    missing = sorted((remote for remote, path in paths.items() if path is None), key=lambda remote: remote.file.bytes)
    # the decoders' MoVQs are the same
    contents = {remote.file.sha256 or remote: remote for remote in (*missing, *cached)}
    to_fetch = [remote for remote in contents.values() if remote not in cached]
    bytes_to_fetch = sum(max(0, remote.file.bytes - hub.partial_bytes(*remote)) for remote in to_fetch)
    existing = next(folder for folder in (hub.folder, *hub.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    total = sum(remote.file.bytes for remote in contents.values())
    return DownloadPlan(name, cached, missing, total, bytes_to_fetch, hub.folder, free)


def snapshot(
    name: str,
    *,
    revision: str | None = None,
    subfolders: Sequence[str] | None = None,
    variant: str | None = None,
    local_files_only: bool = False,
    cache: Path | None = None,
    token: str | None = None,
    say: Say,
    hub: Hub | None = None,
) -> Path:
    """The folder of one pipeline: `name` itself where it is a folder, else a repository "owner/name" of the hub.

    revision: a branch, tag or commit; without one, the pinned commit of a published repository, else `main`.
    subfolders: the networks and settings to fetch, such as "unet" (None: all of them); always in one format,
    preferring `variant`. cache, token: the hub's cache and access token to use, instead of the client's own. Without a
    hub, its cache is used. Raises `CheckpointError`, one sentence.
    """
    folder = expand(name)
    if folder.is_dir():
        return folder
    if not REPOSITORY_NAME.fullmatch(name):
        raise CheckpointError(f"there is no folder {name}, and it is no repository's name, which is owner/name")
    hub = hub or _hugging_face(f"or fetch it elsewhere with `hf download {name}` and pass the folder", cache, token)
    pinned = [of.revision for parts in catalog.published().values() for of in parts.values() if of.name == name]
    revisions = [revision] if revision else [*pinned, "main"]
    cached = (hub.cached(Repository(name, revision), "model_index.json") for revision in revisions)
    known = next(filter(None, cached), None)
    if local_files_only:
        if known is None:
            raise CheckpointError(
                f"{name} is not in the hub's cache {hub.folder}; fetch it once with `hf download {name}`"
            )
        return known.parent
    with _explain_failures(name, f"`hf download {name} --local-dir FOLDER`, and pass FOLDER"):
        try:
            repository = hub.list(name, revisions[0])
        except UnreachableError:
            if known is None:
                raise
            return known.parent
        files = choose_files(repository.files, subfolders, variant)
        if not files:
            raise CheckpointError(f"{name} has no weights in the layout of diffusers")
        got = _fetch_files(plan_download(name, [RemoteFile(repository, file) for file in files], hub), hub, say)
    return next(_root(remote, path) for remote, path in got.items())


def choose_files(files: Iterable[File], subfolders: Sequence[str] | None, variant: str | None) -> list[File]:
    """The files of a repository that a pipeline is loaded from: settings, and one copy of each network's weights."""
    folders: dict[str, dict[str, File]] = {}
    for file in files:
        place = PurePosixPath(file.path)
        if len(place.parts) <= 2:
            folders.setdefault(place.parent.as_posix(), {})[place.name] = file
    selected: list[File] = []
    for folder, by_name in folders.items():
        if folder != "." and (subfolders is None or folder in subfolders):
            selected += [by_name[name] for name in choose_weights(by_name, variant)]
            selected += [file for file in by_name.values() if _is_config(file)]
        elif folder == ".":
            selected += [file for name, file in by_name.items() if _is_config(file) or name.endswith(".safetensors")]
    return [file for file in selected if file.bytes <= MAX_CONFIG_BYTES or WEIGHT_FILE.fullmatch(_name(file))]


def prior_of(decoder: Path) -> str | None:
    """The prior that a decoder's model card names: `prior:` in the front matter of `README.md`, the first of a list.

    None where the folder has no card or the card does not say. diffusers' AutoPipelines use it too.
    """
    try:
        front = FRONT_MATTER.match(read_text(decoder / "README.md"))
    except (OSError, ValueError):
        return None
    line = PRIOR_LINE.search(front[1]) if front else None
    return line[1] if line else None


def size(count: int) -> str:
    """A number of bytes for people, such as "1.2 GB"."""
    for unit, unit_bytes in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= unit_bytes:
            return f"{count / unit_bytes:.1f} {unit}"
    return f"{count} bytes"


def files_of(repositories: Mapping[str, Repository], parts: Sequence[str]) -> Iterator[RemoteFile]:
    """The files of some parts of a model, from the repository of each part."""
    for part, repository in repositories.items():
        for file in repository.files:
            folder = file.path.split("/")[0]
            if (catalog.IMAGE_ENCODER if folder == catalog.IMAGE_ENCODER else part) in parts:
                yield RemoteFile(repository, file)


def _fetch_files(todo: DownloadPlan, hub: Hub, say: Say) -> dict[RemoteFile, Path]:
    """Fetch what is missing and verify what is not verified; returns where each file is."""
    if todo.missing:
        say(str(todo))
        todo.check_free_space()
    got = dict(todo.cached)
    unverified = [remote for remote, path in got.items() if not is_verified(path, remote.file)]
    if unverified:
        _announce_verification(sum(remote.file.bytes for remote in unverified), "that were already here, once", say)
    for remote in unverified:
        verify(got[remote], remote.file, str(remote))
    content = {remote.file.sha256: path for remote, path in got.items()}
    for remote in todo.missing:
        file = remote.file
        got[remote] = hub.download(*remote, content.get(file.sha256) if file.sha256 else None)
        _announce_verification(file.bytes, f"of {remote}", say)
        verify(got[remote], file, str(remote))
        content[file.sha256] = got[remote]
    return got


def _announce_verification(count: int, of: str, say: Say) -> None:
    if count > ANNOUNCED_BYTES:
        say(f"checking {size(count)} {of}")


def _root(remote: RemoteFile, path: Path) -> Path:
    """The folder of the repository that a file is in."""
    return path.parents[remote.file.path.count("/")]


def _roots(repositories: Mapping[str, Repository], got: Mapping[RemoteFile, Path]) -> dict[str, Path]:
    """The folder of each part."""
    roots = {remote.repository.name: _root(remote, path) for remote, path in got.items()}
    return {part: roots[repository.name] for part, repository in repositories.items() if repository.name in roots}


def _name(file: File) -> str:
    return PurePosixPath(file.path).name


def _is_config(file: File) -> bool:
    """Whether a file is a configuration, a vocabulary or a model card, and no index of weights."""
    name = _name(file)
    return name.endswith((".json", ".txt", ".md")) and not WEIGHT_FILE.fullmatch(name)


def _hugging_face(otherwise: str, cache: Path | None = None, token: str | None = None) -> Hub:
    """The Hugging Face hub. Raises `CheckpointError` without its client; `otherwise` is what else can be done."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise CheckpointError(
            f"fetching weights needs huggingface_hub: pip install 'kandinsky22[hub]', {otherwise}"
        ) from None
    from kandinsky22.checkpoints.hugging_face import HuggingFace

    return HuggingFace(cache=cache, token=token)


@contextmanager
def _explain_failures(name: str, commands: str) -> Iterator[None]:
    """Turn a hub's failures into `CheckpointError`s that say what to do."""
    try:
        yield
    except UnreachableError as error:
        raise CheckpointError(
            f"{name} is not here and no hub can be reached ({error}); where one can, {commands}"
        ) from error
    except AccessDeniedError as error:
        raise CheckpointError(
            f"the hub does not give {name} to this user ({error}); log in with `hf auth login`, or if HF_TOKEN is set, "
            "check or unset it"
        ) from error
