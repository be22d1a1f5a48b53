"""The user's pictures: captions, shapes and held-out sets, and what is skipped is reported."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.request.picture_file import SUFFIXES
from kandinsky22.training.photos import NO_HINT, Filter, Photos, read_sources, shapes
from kandinsky22.training.sources import Source

PROCESSOR = CLIPImageProcessor(size=16, crop_size=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)


def encoded(grey: int, width: int = 128, height: int = 128, extension: str = "png") -> bytes:
    """The file of a picture of one grey value."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, {"jpg": "JPEG"}.get(extension, extension.upper()))
    return file.getvalue()


def write_folder(folder: Path, count: int, **size: int) -> Path:
    """Write pictures of one grey value, ten times their number, which their captions state."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(encoded(10 * i % 250, **size))
        (folder / f"{i:03}.txt").write_text(f"grey {10 * i % 250}\n")
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read_all(*paths: Path, side: int = 128, **options: object) -> list[Photos]:
    """All pictures of the sources, none held out."""
    return read_sources([Source(path) for path in paths], side, held_out=0.0, **options)[0]  # type: ignore[arg-type]


def grey_values(photos: Photos) -> list[int]:
    """The mean grey value of each picture."""
    values = (photos.pictures(range(len(photos))).mean(dim=(1, 2, 3)) + 1) * 127.5
    return [round(float(value)) for value in values]


def captions_of(photos: Photos) -> list[str]:
    """A caption of each picture."""
    return photos.captions(range(len(photos)), np.random.default_rng(0))


def assert_captions_match(photos: Photos, count: int) -> None:
    """Each of `count` pictures has the caption with its grey value."""
    assert len(photos) == count
    assert captions_of(photos) == [f"grey {grey}" for grey in grey_values(photos)]


def test_shapes_of_1024_pixels_are_the_listed_ones_and_their_transposes() -> None:
    sizes = shapes(1024)
    assert sizes[0] == (1024, 1024)
    assert {(h, w) for h, w in sizes if w >= h} == {
        (1024, 1024),
        (960, 1088),
        (896, 1152),
        (832, 1216),
        (768, 1280),
        (768, 1344),
        (704, 1408),
    }
    assert {(w, h) for h, w in sizes} == set(sizes) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("side", [64, 100, 128, 256, 512, 768, 1024])
@pytest.mark.parametrize("max_aspect", [1.0, 1.5, 2.0])
def test_shapes_are_as_large_as_area_and_aspect_allow(side: int, max_aspect: float) -> None:
    sizes = shapes(side, max_aspect)
    assert sizes[0][0] == sizes[0][1] == side // 64 * 64
    for h, w in sizes:
        assert h % 64 == w % 64 == 0 and h * w <= side**2 and max(h, w) <= max_aspect * min(h, w)
        assert h == w or (min(h, w) + 64) * max(h, w) > side**2


def test_shapes_below_64_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="use 64"):
        shapes(63)


def test_picture_is_resized_to_cover_its_shape_and_cropped_to_the_centre(tmp_path: Path) -> None:
    """400 x 100 becomes 1408 x 704, twice as wide as high: only the middle half of the width remains."""
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[:, 100:200, 0], pixels[:, 200:300, 1], pixels[:50, 100:300, 2] = 255, 255, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (photos,) = read_all(tmp_path, side=1024, captioned=False)
    assert photos.size == (704, 1408) and photos.side == 704
    (picture,) = photos.pictures([0])
    assert picture.shape == (3, 704, 1408) and picture.dtype == torch.float32
    corners = picture[:, [20, 20, -20, -20], [20, -20, 20, -20]]
    assert corners.T.round().tolist() == [[1, -1, 1], [-1, 1, 1], [1, -1, -1], [-1, 1, -1]]
    assert picture.min() == -1 and picture.max() == 1


def test_crops_are_cut_from_the_resized_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (150, 260, 3), np.uint8)).save(tmp_path / "a.png")
    (photos,) = read_all(tmp_path, side=192, captioned=False)
    pictures, corners = photos.pictures([0, 0]), np.array([[3, 50], [0, 7]])
    crops = photos.crops([0, 0], corners, 32)
    assert torch.equal(crops[0], pictures[0, :, 3:35, 50:82]) and torch.equal(crops[1], pictures[1, :, :32, 7:39])


def test_clip_inputs_are_preprocessed_from_the_uncropped_picture(tmp_path: Path) -> None:
    """After EXIF orientation and over white, as in the pipelines."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 200, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    (photos,) = read_all(tmp_path, captioned=False, processor=PROCESSOR)
    assert photos.photos[0].height == 200 and photos.photos[0].width == 40
    assert torch.equal(photos.clip_inputs([0, 0]), PROCESSOR([picture.transpose(Image.Transpose.ROTATE_270)] * 2))


def test_captions_of_a_folder_match_their_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "deep", 5)
    (tmp_path / "a" / "b.v2.webp").write_bytes(encoded(200, extension="webp"))
    (tmp_path / "a" / "b.v2.json").write_text(json.dumps({"caption": "grey 200"}))
    (tmp_path / "a" / "c.BMP").write_bytes(encoded(90, extension="bmp"))
    (tmp_path / "a" / "c.txt").write_bytes(b"\xef\xbb\xbf\n  grey   90 \n\n")
    (tmp_path / "a" / ".hidden.png").write_bytes(encoded(1))
    write_folder(tmp_path / "a" / ".cache", 2)
    (photos,) = read_all(tmp_path / "a")
    assert_captions_match(photos, 7)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_picture_that_the_package_reads_is_trained_on(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / f"a{suffix.upper()}", SUFFIXES[suffix])
    (photos,) = read_all(tmp_path, side=64, captioned=False)
    assert grey_values(photos) == [pytest.approx(90, abs=1)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_read_in_utf_8_and_utf_16(tmp_path: Path, encoding: str) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encoded(0))
    (tmp_path / "a.caption").write_text("кот\n", encoding=encoding)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "пёс"}\n', encoding=encoding)
    (photos,) = read_all(tmp_path)
    assert captions_of(photos) == ["кот", "пёс"]


def test_files_and_rows_that_are_not_used_are_counted_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 2)
    (folder / "photo.heic").write_bytes(b"")
    (folder / "lost.txt").write_text("a caption without a picture")
    rows = [{"file_name": "000.png", "text": "one"}, {"file_name": "sub/none.png", "text": "none"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_tar(folder / "b.tar", {"5.png": encoded(5), "5.txt": b"five", "6.tiff2": b"?"})
    report = read_sources([Source(folder)], 128, held_out=0)[2]
    assert report.used == 3 and sorted(report.unread) == ["b.tar/6.tiff2", "lost.txt", "photo.heic"]
    assert report.unmatched == [str(Path("sub", "none.png"))]
    assert "other files, not read: 3 (b.tar/6.tiff2, lost.txt, photo.heic)" in str(report)
    assert "rows of metadata without a picture: 1 (sub/none.png)" in str(report)


def test_control_pictures_belong_to_the_pictures_of_their_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 3)
    for i in range(2):
        (folder / f"{i:03}.hint.png").write_bytes(encoded(10 * i + 5, 256, 256))
    write_tar(folder / "b.tar", {"7.png": encoded(70), "7.txt": b"grey 70", "7.hint.PNG": encoded(75)})
    (photos,), _, report = read_sources([Source(folder)], 128, held_out=0, hinted=True)
    assert grey_values(photos) == [0, 10, 70]
    assert photos.hints([0, 1, 2]).float().mean(dim=(1, 2, 3)).tolist() == [5, 15, 75]
    assert report.skipped == {NO_HINT: 1} and not report.unread
    (unhinted,) = read_all(folder)
    assert len(unhinted) == 4


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_of_an_imagefolder_match_their_pictures(tmp_path: Path, kind: str) -> None:
    for folder in (tmp_path, tmp_path / "train"):
        folder.mkdir(exist_ok=True)
        for grey in (30, 60, 90):
            (folder / f"{grey}.png").write_bytes(encoded(grey))
    rows = [(f"{parent}{grey}.png", f"grey {grey}") for grey in (90, 30, 60) for parent in ("", "train/")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": name, "text": caption}) for name, caption in rows)
    else:
        text = "\n".join(["file_name,text", *(f'{name},"{caption}"' for name, caption in rows)])
    (tmp_path / f"metadata.{kind}").write_text(text)
    (photos,) = read_all(tmp_path)
    assert_captions_match(photos, 6)
    (tmp_path / f"metadata.{kind}").write_text('{"file": 1}' if kind == "jsonl" else "name,text\na,b")
    with pytest.raises(ValueError, match="correct or remove it"):
        read_all(tmp_path)


def test_captions_of_tars_match_their_pictures(tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(4):
            grey = 40 * shard + 10 * i
            members[f"{shard}{i:04}.jpg"] = encoded(grey, extension="jpg")
            members[f"{shard}{i:04}.seg.png"] = encoded(255)  # in WebDataset, another file of the same key
            members[f"{shard}{i:04}.txt" if i % 2 else f"{shard}{i:04}.json"] = (
                f"grey {grey}".encode() if i % 2 else json.dumps({"caption": f"grey {grey}"}).encode()
            )
        write_tar(tmp_path / "tars" / f"{shard:05}.tar", members)
    (photos,) = read_all(tmp_path / "tars")
    assert_captions_match(photos, 8)
    (photos,) = read_all(tmp_path / "tars" / "00001.tar")
    assert_captions_match(photos, 4)


def test_each_line_of_a_text_file_is_an_alternative_caption(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    (tmp_path / "000.txt").write_text("a cat\n\na tabby\nkitten\n")
    (photos,) = read_all(tmp_path)
    rng = np.random.default_rng(0)
    drawn = [photos.captions([0, 0], rng) for _ in range(30)]
    assert {caption for pair in drawn for caption in pair} == {"a cat", "a tabby", "kitten"}
    assert photos.captions(range(1), np.random.default_rng(5)) == photos.captions(range(1), np.random.default_rng(5))


def bomb() -> bytes:
    """A PNG whose header states 2.5 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_skipped_pictures_are_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 30)
    (tmp_path / "torn.jpg").write_bytes(encoded(0, extension="jpg")[:-40])
    (tmp_path / "torn.png").write_bytes(encoded(0)[:-40])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "eps.png").write_bytes(encoded(0, extension="eps"))  # a decoder that is not allowed
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("torn", "text", "eps", "bomb", "gone"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    (tmp_path / "001.txt").unlink()
    (tmp_path / "002.txt").write_text(" \n\n")
    (tmp_path / "003.txt").write_bytes(b"caf\xe9")
    (tmp_path / "small.png").write_bytes(encoded(0, 100, 300))
    (tmp_path / "small.txt").write_text("too small")
    steps: list[tuple[int, int]] = []
    training, validation, report = read_sources(
        [Source(tmp_path)],
        64,
        filter=Filter(side=128),
        held_out=0.1,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert (report.total, report.used, report.enlarged) == (37, 27, 0)
    assert report.skipped == {"broken": 6, "without a readable caption": 3, "smaller than 128 pixels": 1}
    assert report.names["without a readable caption"] == ["001.png", "002.png", "003.png"]
    assert "used 27 of 37" in str(report) and "6 broken (bomb.png, eps.png, gone.png, ...)" in str(report)
    assert "1 smaller than 128 pixels (small.png)" in str(report) and len(str(report).splitlines()) == 1
    assert sum(map(len, training)) + sum(map(len, validation)) == 27 and report.held_out == sum(map(len, validation))
    assert steps == [(i + 1, 37) for i in range(37)]
    without = read_sources([Source(tmp_path)], 64, captioned=False)[2]
    assert without.used == 31 and "caption" not in str(without)


def test_enlarged_pictures_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, width=100, height=100)
    (tmp_path / "large.png").write_bytes(encoded(7))
    _, _, report = read_sources([Source(tmp_path)], 128, captioned=False)
    assert report.enlarged == 3 and "enlarged 3" in str(report)


def test_filters_skip_pictures_without_the_metadata_they_need(tmp_path: Path) -> None:
    metadata = [
        {"aesthetic": 6.5, "LICENSE": "CC0"},
        {"AESTHETIC_SCORE": "5.1", "license": "cc-by"},
        {"aesthetic_score": 4.9, "license": "cc0"},
        {"LICENSE": "all rights"},
        {"aesthetic": None, "license": None},
        {"aesthetic": float("nan")},
    ]
    members: dict[str, bytes] = {}
    for i, values in enumerate(metadata):
        members |= {f"{i}.png": encoded(0), f"{i}.json": json.dumps({"caption": str(i), **values}).encode()}
    path = write_tar(tmp_path / "a.tar", members)

    def filtered(**conditions: object) -> list[str]:
        (photos,) = read_all(path, filter=Filter(**conditions))  # type: ignore[arg-type]
        return captions_of(photos)

    assert filtered() == list("012345")
    assert filtered(aesthetic=5.0) == ["0", "1"]
    assert filtered(licences=("cc0", "CC-BY")) == ["0", "1", "2"]
    assert filtered(aesthetic=5.0, licences=("cc0",)) == ["0"]
    with pytest.raises(ValueError, match=r"nothing in .*6 without an aesthetic score of at least 9 .*ask for less"):
        filtered(aesthetic=9)


@pytest.mark.parametrize("where", ["picture", "header", "end"])
def test_truncated_tar_is_read_up_to_the_damage(tmp_path: Path, where: str) -> None:
    members: dict[str, bytes] = {}
    for i in range(3):
        members |= {f"{i}.txt": f"grey {10 * i}".encode(), f"{i}.png": encoded(10 * i)}
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path) as tar:
        last = tar.getmember("2.png")
    os.truncate(path, {"picture": last.offset_data + 20, "header": last.offset + 100, "end": last.offset}[where])
    training, _, report = read_sources([Source(path)], 128)
    assert captions_of(training[0]) == ["grey 0", "grey 10"]
    assert report.damaged == ["a.tar"] and "read 1 damaged .tar as far as it goes (a.tar)" in str(report)


def test_sources_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"holds no pictures.*damaged.*give a folder or a \.tar"):
        read_all(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.tar"):
        read_all(tmp_path / "a.zip")
    intact = write_tar(tmp_path / "intact" / "b.tar", {"0.png": encoded(0)})
    assert read_sources([Source(intact)], 64, captioned=False)[2].damaged == []


def test_shares_follow_from_weights_and_numbers_of_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "square", 30)
    write_folder(tmp_path / "a" / "wide", 10, width=256)
    write_folder(tmp_path / "b", 20, height=256)
    sources = [Source(tmp_path / "a", 3.0), Source(tmp_path / "b", 1.0)]
    training, _, _ = read_sources(sources, 192, held_out=0.0)
    assert {(photos.size, photos.share) for photos in training} == {
        ((192, 192), 0.75 * 0.75),
        ((128, 256), 0.75 * 0.25),
        ((256, 128), 0.25),
    }
    for part in read_sources(sources, 192, held_out=0.2)[:2]:
        assert sum(photos.share for photos in part) == pytest.approx(1)
        assert sum(photos.share for photos in part if photos.size == (256, 128)) == pytest.approx(0.25)


def names_in(sets: list[Photos]) -> set[str]:
    """The names of all pictures of the sets."""
    return {photo.name for photos in sets for photo in photos.photos}


def test_trained_pictures_are_not_held_out_after_others_are_added(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 60)
    training, validation, report = read_sources([Source(folder)], 64, held_out=0.1)
    before, trained = names_in(validation), names_in(training)
    assert not before & trained and len(before | trained) == 60 and 1 <= len(before) < 20 and report.small_sources == []
    write_folder(folder, 90)
    training, validation, _ = read_sources([Source(folder)], 64, held_out=0.1)
    assert before <= names_in(validation) and trained <= names_in(training)
    moved = names_in(read_sources([Source(folder.rename(tmp_path / "b"))], 64, held_out=0.1)[1])
    assert moved == names_in(validation)
    assert len(names_in(read_sources([Source(tmp_path / "b")], 64, held_out=1e-9)[1])) == 1


def test_number_of_held_out_pictures_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.training.photos.MAX_HELD_OUT", 5)
    training, validation, _ = read_sources([Source(write_folder(tmp_path, 40))], 64, held_out=0.5)
    assert len(names_in(validation)) == 5 and len(names_in(training)) == 35


def test_held_out_pictures_of_a_small_source_are_trained_on_and_reported(tmp_path: Path) -> None:
    training, validation, report = read_sources([Source(write_folder(tmp_path / "mine", 4))], 64)
    assert len(names_in(training)) == 4 and len(names_in(validation)) == 1
    assert "of mine, which has fewer than 20" in str(report)


def test_name_depends_on_pictures_captions_and_shape(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 3)
    (before,), (other,) = read_all(folder), read_all(folder, side=64)
    assert read_all(folder)[0].name == before.name and len({before.pixels_name, other.pixels_name}) == 2
    (folder / "001.txt").write_text("another")
    (recaptioned,) = read_all(folder)
    assert recaptioned.name != before.name and recaptioned.pixels_name == before.pixels_name
    (folder / "001.png").write_bytes(encoded(10, 130, 130))
    (redrawn,) = read_all(folder)
    assert len({before.pixels_name, redrawn.pixels_name}) == 2 and redrawn.name.startswith(redrawn.pixels_name)
    write_folder(folder, 4)
    assert read_all(folder)[0].pixels_name not in (before.pixels_name, redrawn.pixels_name)


def test_picture_that_changes_during_training_is_named(tmp_path: Path) -> None:
    (photos,) = read_all(write_folder(tmp_path, 2))
    (tmp_path / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"001\.png .*start again"):
        photos.pictures([0, 1])


def test_source_is_parsed_from_a_path_and_a_weight(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / "odd:3"
    plain.mkdir()
    odd.mkdir()
    assert Source.parse(str(plain)) == Source(plain, 1.0)
    assert Source.parse(f"{plain}:2.5") == Source(plain, 2.5)
    assert Source.parse(str(odd)) == Source(odd, 1.0)
    assert Source.parse(f"{odd}:0.5") == Source(odd, 0.5)
    for weight in ("0", "-1", "nan", "inf", "many", ""):
        with pytest.raises(ValueError, match=r"must be a positive number.*try"):
            Source.parse(f"{plain}:{weight}")
    for missing in (tmp_path / "none", f"{tmp_path}/none:2", "", ":2"):
        with pytest.raises(ValueError, match=r"is not there; give a folder or a \.tar"):
            Source.parse(str(missing))


def test_half_characters_and_endless_numbers_in_metadata_are_ignored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 2)
    for i, values in enumerate(({"caption": "a \ud800ring", "aesthetic": 6}, {"caption": "x", "aesthetic": 10**400})):
        (folder / f"{i:03}.txt").unlink()
        (folder / f"{i:03}.json").write_text(json.dumps(values))
    (photos,) = read_all(folder, filter=Filter(aesthetic=5.0))
    assert captions_of(photos) == ["a ring"]
