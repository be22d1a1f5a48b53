"""A person's own pictures: each with its own caption and in its own shape, and nothing is lost without a word."""

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
from kandinsky22.training.photos import Filter, Photos, read, shapes
from kandinsky22.training.sources import Source

PROCESSOR = CLIPImageProcessor(size=16, crop_size=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)


def encoded(grey: int, width: int = 128, height: int = 128, ending: str = "png") -> bytes:
    """The file of a picture of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, {"jpg": "JPEG"}.get(ending, ending.upper()))
    return file.getvalue()


def write_folder(folder: Path, count: int, **size: int) -> Path:
    """Pictures whose captions say their grey, which is ten times their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(encoded(10 * i % 250, **size))
        (folder / f"{i:03}.txt").write_text(f"grey {10 * i % 250}\n")
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def every(*paths: Path, side: int = 128, **options: object) -> list[Photos]:
    """All pictures of some sources, none held out."""
    return read([Source(path) for path in paths], side, held_out=0.0, **options)[0]  # type: ignore[arg-type]


def greys(photos: Photos) -> list[int]:
    values = (photos.pictures(range(len(photos))).mean(dim=(1, 2, 3)) + 1) * 127.5
    return [round(float(value)) for value in values]


def told(photos: Photos) -> list[str]:
    return photos.captions(range(len(photos)), np.random.default_rng(0))


def assert_together(photos: Photos, count: int) -> None:
    """Every caption is that of its picture."""
    assert len(photos) == count
    assert told(photos) == [f"grey {grey}" for grey in greys(photos)]


def test_shapes_of_1024() -> None:
    found = shapes(1024)
    assert found[0] == (1024, 1024)
    assert {(h, w) for h, w in found if w >= h} == {
        (1024, 1024),
        (960, 1088),
        (896, 1152),
        (832, 1216),
        (768, 1280),
        (768, 1344),
        (704, 1408),
    }
    assert {(w, h) for h, w in found} == set(found) and len(set(found)) == len(found)


@pytest.mark.parametrize("side", [64, 100, 128, 256, 512, 768, 1024])
@pytest.mark.parametrize("most", [1.0, 1.5, 2.0])
def test_shapes_are_as_large_as_they_may_be(side: int, most: float) -> None:
    found = shapes(side, most)
    assert found[0][0] == found[0][1] == side // 64 * 64
    for h, w in found:
        assert h % 64 == w % 64 == 0 and h * w <= side**2 and max(h, w) <= most * min(h, w)
        assert h == w or (min(h, w) + 64) * max(h, w) > side**2


def test_no_shape_is_smaller_than_the_grain() -> None:
    with pytest.raises(ValueError, match="use 64"):
        shapes(63)


def test_a_picture_is_resized_to_cover_and_cropped_to_its_centre(tmp_path: Path) -> None:
    """400 x 100 goes to 1408 x 704, twice as wide as high: what is left and right of its middle half is cut away."""
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[:, 100:200, 0], pixels[:, 200:300, 1], pixels[:50, 100:300, 2] = 255, 255, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (photos,) = every(tmp_path, side=1024, captioned=False)
    assert photos.size == (704, 1408) and photos.side == 704
    (picture,) = photos.pictures([0])
    assert picture.shape == (3, 704, 1408) and picture.dtype == torch.float32
    corners = picture[:, [20, 20, -20, -20], [20, -20, 20, -20]]
    assert corners.T.round().tolist() == [[1, -1, 1], [-1, 1, 1], [1, -1, -1], [-1, 1, -1]]
    assert picture.min() == -1 and picture.max() == 1


def test_crops_are_cut_from_what_is_trained_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (150, 260, 3), np.uint8)).save(tmp_path / "a.png")
    (photos,) = every(tmp_path, side=192, captioned=False)
    whole, corners = photos.pictures([0, 0]), np.array([[3, 50], [0, 7]])
    cut = photos.crops([0, 0], corners, 32)
    assert torch.equal(cut[0], whole[0, :, 3:35, 50:82]) and torch.equal(cut[1], whole[1, :, :32, 7:39])


def test_clip_sees_the_original_as_the_pipelines_show_it(tmp_path: Path) -> None:
    """Upright, over white, and not as it is cropped for the other networks."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 200, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(tmp_path / "a.png", exif=exif)
    (photos,) = every(tmp_path, captioned=False, processor=PROCESSOR)
    assert photos.photos[0].height == 200 and photos.photos[0].width == 40
    assert torch.equal(photos.seen([0, 0]), PROCESSOR([picture.transpose(Image.Transpose.ROTATE_270)] * 2))


def test_captions_of_a_folder_belong_to_their_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "deep", 5)
    (tmp_path / "a" / "b.v2.webp").write_bytes(encoded(200, ending="webp"))
    (tmp_path / "a" / "b.v2.json").write_text(json.dumps({"caption": "grey 200"}))
    (tmp_path / "a" / "c.BMP").write_bytes(encoded(90, ending="bmp"))
    (tmp_path / "a" / "c.txt").write_bytes(b"\xef\xbb\xbf\n  grey   90 \n\n")
    (tmp_path / "a" / ".hidden.png").write_bytes(encoded(1))
    write_folder(tmp_path / "a" / ".cache", 2)
    (photos,) = every(tmp_path / "a")
    assert_together(photos, 7)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_of_an_imagefolder_belong_to_their_pictures(tmp_path: Path, kind: str) -> None:
    for folder in (tmp_path, tmp_path / "train"):
        folder.mkdir(exist_ok=True)
        for grey in (30, 60, 90):
            (folder / f"{grey}.png").write_bytes(encoded(grey))
    rows = [(f"{place}{grey}.png", f"grey {grey}") for grey in (90, 30, 60) for place in ("", "train/")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": name, "text": said}) for name, said in rows)
    else:
        text = "\n".join(["file_name,text", *(f'{name},"{said}"' for name, said in rows)])
    (tmp_path / f"metadata.{kind}").write_text(text)
    (photos,) = every(tmp_path)
    assert_together(photos, 6)
    (tmp_path / f"metadata.{kind}").write_text('{"file": 1}' if kind == "jsonl" else "name,text\na,b")
    with pytest.raises(ValueError, match="correct it or remove it"):
        every(tmp_path)


def test_captions_of_tars_belong_to_their_pictures(tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for i in range(4):
            grey = 40 * shard + 10 * i
            members[f"{shard}{i:04}.jpg"] = encoded(grey, ending="jpg")
            members[f"{shard}{i:04}.seg.png"] = encoded(255)  # WebDataset's way to name another thing of the same key
            members[f"{shard}{i:04}.txt" if i % 2 else f"{shard}{i:04}.json"] = (
                f"grey {grey}".encode() if i % 2 else json.dumps({"caption": f"grey {grey}"}).encode()
            )
        write_tar(tmp_path / "tars" / f"{shard:05}.tar", members)
    (photos,) = every(tmp_path / "tars")
    assert_together(photos, 8)
    (alone,) = every(tmp_path / "tars" / "00001.tar")
    assert_together(alone, 4)


def test_every_line_is_another_wording(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    (tmp_path / "000.txt").write_text("a cat\n\na tabby\nkitten\n")
    (photos,) = every(tmp_path)
    rng = np.random.default_rng(0)
    drawn = [photos.captions([0, 0], rng) for _ in range(30)]
    assert {said for pair in drawn for said in pair} == {"a cat", "a tabby", "kitten"}
    assert photos.captions(range(1), np.random.default_rng(5)) == photos.captions(range(1), np.random.default_rng(5))


def bomb() -> bytes:
    """A PNG that says it has 2.5 thousand million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 30)
    (tmp_path / "torn.jpg").write_bytes(encoded(0, ending="jpg")[:-40])
    (tmp_path / "torn.png").write_bytes(encoded(0)[:-40])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "gif.png").write_bytes(encoded(0, ending="gif"))  # a decoder that is not let near
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("torn", "text", "gif", "bomb", "gone"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    (tmp_path / "001.txt").unlink()
    (tmp_path / "002.txt").write_text(" \n\n")
    (tmp_path / "003.txt").write_bytes(b"caf\xe9")
    (tmp_path / "small.png").write_bytes(encoded(0, 100, 300))
    (tmp_path / "small.txt").write_text("too small")
    steps: list[tuple[int, int]] = []
    training, unseen, report = read(
        [Source(tmp_path)],
        64,
        filter=Filter(side=128),
        held_out=0.1,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert (report.found, report.used, report.enlarged) == (37, 27, 0)
    assert report.passed == {"broken": 6, "without a readable caption": 3, "smaller than 128 pixels": 1}
    assert report.names["without a readable caption"] == ["001.png", "002.png", "003.png"]
    assert "used 27 of 37" in str(report) and "6 broken (bomb.png, gif.png, gone.png, ...)" in str(report)
    assert "1 smaller than 128 pixels (small.png)" in str(report) and len(str(report).splitlines()) == 1
    assert sum(map(len, training)) + sum(map(len, unseen)) == 27 and report.held_out == sum(map(len, unseen))
    assert steps == [(i + 1, 37) for i in range(37)]
    without = read([Source(tmp_path)], 64, captioned=False)[2]
    assert without.used == 31 and "caption" not in str(without)


def test_smaller_pictures_are_enlarged_and_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, width=100, height=100)
    (tmp_path / "large.png").write_bytes(encoded(7))
    _, _, report = read([Source(tmp_path)], 128, captioned=False)
    assert report.enlarged == 3 and "enlarged 3" in str(report)


def test_only_what_is_known_to_pass_a_filter_does(tmp_path: Path) -> None:
    said = [
        {"aesthetic": 6.5, "LICENSE": "CC0"},
        {"AESTHETIC_SCORE": "5.1", "license": "cc-by"},
        {"aesthetic_score": 4.9, "license": "cc0"},
        {"LICENSE": "all rights"},
        {"aesthetic": None, "license": None},
        {"aesthetic": float("nan")},
    ]
    members: dict[str, bytes] = {}
    for i, about in enumerate(said):
        members |= {f"{i}.png": encoded(0), f"{i}.json": json.dumps({"caption": str(i), **about}).encode()}
    path = write_tar(tmp_path / "a.tar", members)

    def kept(**asked: object) -> list[str]:
        (photos,) = every(path, filter=Filter(**asked))  # type: ignore[arg-type]
        return told(photos)

    assert kept() == list("012345")
    assert kept(aesthetic=5.0) == ["0", "1"]
    assert kept(licences=("cc0", "CC-BY")) == ["0", "1", "2"]
    assert kept(aesthetic=5.0, licences=("cc0",)) == ["0"]
    with pytest.raises(ValueError, match=r"nothing in .*6 without an aesthetic score of at least 9 .*ask for less"):
        kept(aesthetic=9)


@pytest.mark.parametrize("where", ["picture", "header", "end"])
def test_a_torn_tar_is_used_up_to_the_tear(tmp_path: Path, where: str) -> None:
    members: dict[str, bytes] = {}
    for i in range(3):
        members |= {f"{i}.txt": f"grey {10 * i}".encode(), f"{i}.png": encoded(10 * i)}
    path = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(path) as tar:
        last = tar.getmember("2.png")
    os.truncate(path, {"picture": last.offset_data + 20, "header": last.offset + 100, "end": last.offset}[where])
    training, _, report = read([Source(path)], 128)
    assert told(training[0]) == ["grey 0", "grey 10"]
    assert report.damaged == ["a.tar"] and "read 1 damaged .tar as far as it goes (a.tar)" in str(report)


def test_no_tar_and_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("no tar")
    with pytest.raises(ValueError, match=r"holds no pictures.*damaged.*give a folder or a \.tar"):
        every(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.tar"):
        every(tmp_path / "a.zip")
    whole = write_tar(tmp_path / "whole" / "b.tar", {"0.png": encoded(0)})
    assert read([Source(whole)], 64, captioned=False)[2].damaged == []


def test_shares_follow_the_weights_and_the_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "square", 30)
    write_folder(tmp_path / "a" / "wide", 10, width=256)
    write_folder(tmp_path / "b", 20, height=256)
    sources = [Source(tmp_path / "a", 3.0), Source(tmp_path / "b", 1.0)]
    training, _, _ = read(sources, 192, held_out=0.0)
    assert {(photos.size, photos.share) for photos in training} == {
        ((192, 192), 0.75 * 0.75),
        ((128, 256), 0.75 * 0.25),
        ((256, 128), 0.25),
    }
    for part in read(sources, 192, held_out=0.2)[:2]:
        assert sum(photos.share for photos in part) == pytest.approx(1)
        assert sum(photos.share for photos in part if photos.size == (256, 128)) == pytest.approx(0.25)


def named(parts: list[Photos]) -> set[str]:
    return {photo.name for photos in parts for photo in photos.photos}


def test_held_out_pictures_are_apart_and_stay_so_when_pictures_are_added(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 60)
    training, unseen, report = read([Source(folder)], 64, held_out=0.1)
    before, trained = named(unseen), named(training)
    assert not before & trained and len(before | trained) == 60 and 1 <= len(before) < 20 and report.few == []
    write_folder(folder, 90)
    training, unseen, _ = read([Source(folder)], 64, held_out=0.1)
    assert before <= named(unseen) and trained <= named(training)
    moved = named(read([Source(folder.rename(tmp_path / "b"))], 64, held_out=0.1)[1])
    assert moved == named(unseen)
    assert len(named(read([Source(tmp_path / "b")], 64, held_out=1e-9)[1])) == 1


def test_no_more_are_held_out_than_measuring_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.training.photos.MOST_HELD_OUT", 5)
    training, unseen, _ = read([Source(write_folder(tmp_path, 40))], 64, held_out=0.5)
    assert len(named(unseen)) == 5 and len(named(training)) == 35


def test_of_few_pictures_what_is_held_out_is_trained_on_and_said(tmp_path: Path) -> None:
    training, unseen, report = read([Source(write_folder(tmp_path / "mine", 4))], 64)
    assert len(named(training)) == 4 and len(named(unseen)) == 1
    assert "of mine, which has fewer than 20" in str(report)


def test_the_name_changes_with_pictures_captions_and_shape(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", 3)
    (before,), (other,) = every(folder), every(folder, side=64)
    assert every(folder)[0].name == before.name and len({before.look, other.look}) == 2
    (folder / "001.txt").write_text("another")
    (said,) = every(folder)
    assert said.name != before.name and said.look == before.look
    (folder / "001.png").write_bytes(encoded(10, 130, 130))
    (drawn,) = every(folder)
    assert len({before.look, drawn.look}) == 2 and drawn.name.startswith(drawn.look)
    write_folder(folder, 4)
    assert every(folder)[0].look not in (before.look, drawn.look)


def test_a_picture_that_changes_while_it_is_used_is_named(tmp_path: Path) -> None:
    (photos,) = every(write_folder(tmp_path, 2))
    (tmp_path / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"001\.png .*start anew"):
        photos.pictures([0, 1])


def test_sources_on_a_command_line(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain", tmp_path / "odd:3"
    plain.mkdir()
    odd.mkdir()
    assert Source.parsed(str(plain)) == Source(plain, 1.0)
    assert Source.parsed(f"{plain}:2.5") == Source(plain, 2.5)
    assert Source.parsed(str(odd)) == Source(odd, 1.0)
    assert Source.parsed(f"{odd}:0.5") == Source(odd, 0.5)
    for weight in ("0", "-1", "nan", "inf", "many", ""):
        with pytest.raises(ValueError, match=r"must be a positive number.*try"):
            Source.parsed(f"{plain}:{weight}")
    for missing in (tmp_path / "none", f"{tmp_path}/none:2", "", ":2"):
        with pytest.raises(ValueError, match=r"is not there; give a folder or a \.tar"):
            Source.parsed(str(missing))
