"""What users keep in order, as part of `/api/v1`: presets, styles, wildcards, embeddings, folders; and thumbnails."""

import asyncio
import io
import json
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, Field

from kandinsky22.imaging.images import save_film
from kandinsky22.request.picture_file import open_picture
from kandinsky22.server.app import Services
from kandinsky22.server.dialects.common import Asker
from kandinsky22.server.dialects.native import Number, PictureView, picture_view
from kandinsky22.server.errors import ApiError
from kandinsky22.server.library import Document, Library
from kandinsky22.server.store import StoredPicture

MAX_DOCUMENT = 256 << 10  # bytes of a document
THUMBNAILS = 2000  # that stay in memory
MAX_FRAMES = 240
Kind = Literal["preset", "style", "wildcard", "embedding"]
Name = Annotated[str, PathParameter(min_length=1, max_length=100)]
FILM_TYPES = {"gif": "image/gif", "apng": "image/apng", "mp4": "video/mp4"}


class DocumentView(BaseModel):
    """A named value. `changed`: seconds since 1970."""

    kind: Kind
    name: str
    value: Any
    changed: float


class NewValue(BaseModel):
    """The value of a document: any JSON."""

    value: Any


class LibraryPicture(PictureView):
    """A picture with the folder it is in."""

    folder: str | None


class Move(BaseModel):
    """The folder to put a picture into; None: into none; "trash" is that of deleted pictures."""

    folder: str | None = Field(max_length=100, min_length=1)


class FolderView(BaseModel):
    """A folder and how many pictures are in it."""

    name: str
    count: int


class Removed(BaseModel):
    """How many pictures were deleted."""

    count: int


class NewFilm(BaseModel):
    """Pictures of one size, by id, in the order in which they are played."""

    pictures: list[str] = Field(min_length=2, max_length=MAX_FRAMES)
    fps: float = Field(12, ge=0.5, le=60)
    format: Literal["gif", "apng", "mp4"] = "gif"
    loop: bool = True


def router(services: Services) -> APIRouter:
    """The routes."""
    routes, store, library = APIRouter(), services.store, Library(services.store)
    thumbnails: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    @routes.get("/documents")
    async def documents(key: Asker) -> list[DocumentView]:
        """Your presets, styles, wildcards and named embeddings."""
        return [_view(document) for document in await asyncio.to_thread(library.documents, key.name)]

    @routes.put("/documents/{kind}/{name}")
    async def put(kind: Kind, name: Name, new: NewValue, key: Asker) -> DocumentView:
        """Store a document, in place of one of the same name."""
        if len(json.dumps(new.value)) > MAX_DOCUMENT:
            raise ApiError("too large", f"a {kind} has at most {MAX_DOCUMENT >> 10} KB; make it shorter", "value")
        return _view(await asyncio.to_thread(library.put, key.name, kind, name, new.value))

    @routes.delete("/documents/{kind}/{name}", status_code=204)
    async def remove(kind: Kind, name: Name, key: Asker) -> None:
        """Remove a document."""
        if not await asyncio.to_thread(library.remove, key.name, kind, name):
            raise ApiError("not found", f"there is no {kind} of this name")

    @routes.get("/library")
    async def pictures(
        key: Asker,
        before: Number = None,
        count: int = Query(60, ge=1, le=200),
        search: str = Query("", max_length=200),
        starred: bool = False,
        folder: str | None = Query(None, max_length=100),
    ) -> list[LibraryPicture]:
        """Your pictures with their folders, the newest first.

        search: words of prompts, and settings such as `steps:20`, `seed:7`, `sampler:ddim`, `size:128x96`, `has:mask`.
        folder: only the pictures in it; without one, all but those in "trash".
        """
        found = await asyncio.to_thread(
            lambda: library.pictures(
                key.name, before=before, count=count, search=search, starred=starred, folder=folder
            )
        )
        return [_in_folder(picture, place) for picture, place in found]

    @routes.patch("/library/{picture}")
    async def move(picture: str, change: Move, key: Asker) -> LibraryPicture:
        """Put a picture into a folder; "trash" deletes it until it is taken out again, or the trash is emptied."""
        moved = await asyncio.to_thread(library.move, key.name, picture, change.folder)
        if moved is None:
            raise ApiError("not found", "there is no such picture")
        return _in_folder(moved, change.folder)

    @routes.get("/folders")
    async def folders(key: Asker) -> list[FolderView]:
        """Your folders."""
        counts = await asyncio.to_thread(library.folders, key.name)
        return [FolderView(name=name, count=count) for name, count in counts.items()]

    @routes.delete("/folders/trash")
    async def empty_trash(key: Asker) -> Removed:
        """Delete what is in the trash for good."""
        return Removed(count=await asyncio.to_thread(library.empty_trash, key.name))

    @routes.get("/pictures/{picture}/thumbnail", response_class=Response)
    async def thumbnail(picture: str, key: Asker, side: Literal["192", "384"] = "192") -> Response:
        """A picture as WebP of at most so many pixels a side."""
        found = await asyncio.to_thread(store.picture, picture, key.name)
        if found is None:
            raise ApiError("not found", "there is no such picture")
        place = picture, int(side)
        if place not in thumbnails:
            thumbnails[place] = await asyncio.to_thread(_thumbnail, found, int(side))
            while len(thumbnails) > THUMBNAILS:
                thumbnails.popitem(last=False)
        return Response(thumbnails[place], media_type="image/webp", headers={"cache-control": "private, max-age=86400"})

    @routes.post("/films", response_class=Response)
    async def film(new: NewFilm, key: Asker) -> Response:
        """Pictures as a film: GIF, animated PNG, or MP4 where the server has ffmpeg."""
        found = [await asyncio.to_thread(store.picture, picture, key.name) for picture in new.pictures]
        chosen = [picture for picture in found if picture is not None]
        if len(chosen) < len(found):
            raise ApiError("not found", "one of the pictures is not here any more; paint it again", "pictures")
        if len({(picture.width, picture.height) for picture in chosen}) > 1:
            raise ApiError("invalid", "the pictures of a film have one size; leave out the others", "pictures")
        content = await asyncio.to_thread(_film, chosen, new)
        return Response(content, media_type=FILM_TYPES[new.format])

    return routes


def _view(document: Document) -> DocumentView:
    return DocumentView.model_validate(document, from_attributes=True)


def _in_folder(picture: StoredPicture, folder: str | None) -> LibraryPicture:
    return LibraryPicture(**picture_view(picture).model_dump(), folder=folder)


def _thumbnail(picture: StoredPicture, side: int) -> bytes:
    with open_picture(picture.path, formats=("PNG",)) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=85, method=2)
    return file.getvalue()


def _film(pictures: list[StoredPicture], new: NewFilm) -> bytes:
    frames = []
    for picture in pictures:
        with open_picture(picture.path, formats=("PNG",)) as image:
            frames.append(image.convert("RGB"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film.{new.format}"
        return save_film(frames, path, fps=new.fps, loop=new.loop).read_bytes()
