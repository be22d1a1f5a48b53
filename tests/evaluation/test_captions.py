"""Files of captions: the forms that are accepted, and the error message for each that is refused."""

import hashlib
from pathlib import Path

import pytest

from kandinsky22.evaluation.captions import Captioned, read


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "items"),
    [
        ("a.csv", "caption\na ring\na star\n", [("1", "a ring", None), ("2", "a star", None)]),
        ("a.CSV", "id,caption,seed\nx,a ring,7\ny,a ring,\n", [("x", "a ring", 7), ("y", "a ring", None)]),
        ("a.csv", '\ufeffText ,File_Name,width\r\n"a ring, red",a b.JPG,9\r\n', [("a b", "a ring, red", None)]),
        ("a.csv", ',prompt\n0,"a ""red"" ring"\n\n,\n', [("1", 'a "red" ring', None)]),
        ("a.csv", 'id,caption\n1,"a ring\nover a star"\n', [("1", "a ring\nover a star", None)]),
        ("a.csv", "image_id,id,caption\n9,1,a ring\n9,2,a star\n", [("1", "a ring", None), ("2", "a star", None)]),
        ("a.tsv", "image_id\ttext\n000042\t a ring \n", [("000042", "a ring", None)]),
        ("a.csv", "name,caption\nStraße №1,кольцо", [("Straße №1", "кольцо", None)]),
        ("a.txt", "a ring\r\na star\n\n \n", [("1", "a ring", None), ("2", "a star", None)]),
        ("a.txt", "\n".join(f"ring {k}" for k in range(10)), [(f"{k + 1:02}", f"ring {k}", None) for k in range(10)]),
        ("a.txt", "a\u2028ring\n", [("1", "a\u2028ring", None)]),
    ],
)
def test_read_accepts_tables_and_text(
    tmp_path: Path, name: str, content: str, items: list[tuple[str, str, int | None]]
) -> None:
    captions = read(write(tmp_path, name, content))
    assert captions.items == tuple(Captioned(*item) for item in items)
    assert captions.sha256 == hashlib.sha256(content.encode()).hexdigest()


TABLES = {
    "title,author\nx,y\n": "no column of captions, only 'title', 'author'; name one of them caption, text or prompt",
    "a ring\na star\n": "no column of captions, only 'a ring'",
    "\ncaption\na ring\n": "only an empty line where the header belongs",
    "caption,text\na,b\n": "the columns 'caption' and 'text', each of which could be the caption; keep one of them",
    "caption,Caption\na,b\n": "the columns 'caption' and 'caption'",
    "id,file_name,caption\n1,2,a\n": "the columns 'id' and 'file_name', each of which could be the id",
    'id,caption\n1,a\n2,"'
    + "b" * 200_000
    + "\n": "line 3, has a field of more than 131072 characters, which is no caption; close",
    "id,caption\n1,a ring\n2,a ring, red\n": "line 3, has 3 fields and the header has 2; put a caption that holds",
    "id,caption\n1\n": "line 2, has 1 fields",
    'id,caption\n1,"two\nlines"\n2\n': "line 4, has 1 fields",
    "id,caption\n1,a\n2,b\n1,c\n": "lines 2 and 4 have the same id, '1'; give each its own",
    "id,caption\na.png,a\na.jpg,b\n": "lines 2 and 3 have the same id, 'a'",
    "caption\na ring\na star\na ring \n": "lines 2 and 4 have the same caption, 'a ring'; remove one of them, or give",
    "caption\na\n\nb\n": "line 3, has no caption; write one, or remove the line",
    "id,caption\n1,a\n2,  \n3,c\n": "line 3, has no caption",
    "id,caption\n,a\n": "line 2, has no id; give it one, or remove the column",
    "id,caption\nval/1,a\n": "line 2: the id 'val/1' cannot name a file; leave out folders",
    "id,caption\n..,a\n": "line 2: the id '..' cannot name a file",
    "id,caption\n.jpg,a\n": "line 2, has no id",
    'id,caption\n"a\nb",a\n': r"line 2: the id 'a\nb' cannot name a file",
    f"id,caption\n{'ä' * 101},a\n": "line 2: the id has 202 bytes, and a file's name takes 200; shorten it",
    "caption,seed\na,-1\n": "line 2: a seed is a whole number from 0 to",
    "caption,seed\na,9223372036854775807\n": "line 2: a seed is a whole number",
    "caption,seed\na,1.0\n": "got '1.0'; leave the field empty",
    'id,caption\n1,"a ring\n2,b\n': "line 2, cannot be read (unexpected end of data); put the field into",
    'id,caption\n1,"a" ring\n': "line 2, cannot be read",
    "": "holds no captions; write one per line below the header",
    "id,caption\n": "holds no captions",
    "caption\n\n\n": "holds no captions",
}


@pytest.mark.parametrize(("content", "message"), TABLES.items())
def test_read_refuses_ambiguous_tables(tmp_path: Path, content: str, message: str) -> None:
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(ValueError) as raised:
        read(path)
    assert message in str(raised.value) and str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no captions; write one per line"),
        (b"\n \n", "holds no captions"),
        (b"a\n\nb", "line 2, has no caption"),
        (b"a\nb\na", "lines 1 and 3 have the same caption, 'a'; remove one of them, or give each an id"),
        (b"a ring\nune \xe9toile\n", "is not UTF-8: byte 11, in line 2, is wrong; save it as UTF-8"),
        (b"\xef\xbb\xbfa ring\nune \xe9toile\n", "byte 14, in line 2"),
        ("a ring".encode("utf-16"), "is not UTF-8: byte 0, in line 1"),
        ("a ring".encode("utf-16-le"), "line 1 holds a zero byte; save it as UTF-8"),
    ],
)
def test_read_refuses_ambiguous_text(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        read(write(tmp_path, "a.txt", content))
    assert message in str(raised.value)


def test_read_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"captions are read from \.csv, \.tsv and \.txt files, got 'a\.json'"):
        read(write(tmp_path, "a.json", "[]"))
    with pytest.raises(ValueError, match=r"cannot read .*missing\.csv: No such file"):
        read(tmp_path / "missing.csv")
