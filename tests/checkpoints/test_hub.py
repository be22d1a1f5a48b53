"""Weights from the hub: only what is needed, told of first, held against what was published; every refusal one sentence.

The planning is tried on a pretended hub of the published sizes; fetching on a little hub that speaks HTTP with the real
client. No request leaves this machine.
"""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.checkpoints.little_hub import LittleHub, serving

from kandinsky22.checkpoints import catalog, checked, hub, hugging_face, locate
from kandinsky22.checkpoints.catalog import DECODER, DEPTH, IMAGE_ENCODER, INPAINT, PRIOR, File, Repository
from kandinsky22.checkpoints.hugging_face import HuggingFace
from kandinsky22.checkpoints.json_files import CheckpointError

GB = 10**9
MODEL = "kandinsky-2.2"


class Pretended:
    """A hub with the published files in name and size alone. `there` are in its cache, `begun_` were interrupted."""

    def __init__(self, folder: Path, there: set[str] | None = None, begun: dict[str, int] | None = None) -> None:
        self.folder, self.there, self.begun_ = folder, there or set(), begun or {}

    def cached(self, repository: Repository, path: str) -> Path | None:
        return self.folder / repository.name / path if f"{repository.name}/{path}" in self.there else None

    def begun(self, repository: Repository, file: File) -> int:
        return self.begun_.get(f"{repository.name}/{file.path}", 0)

    def list(self, name: str, revision: str) -> Repository:
        raise hub.UnreachableError("the cable is out")

    def download(self, repository: Repository, file: File, twin: Path | None) -> Path:
        raise hub.UnreachableError("the cable is out")


def planned(parts: list[str], pretended: Pretended) -> hub.Plan:
    return hub.plan(MODEL, list(hub._pieces(catalog.published()[MODEL], parts)), pretended)


def paths(plan: hub.Plan) -> set[str]:
    return {f"{piece.repository.name.partition('/')[2]}/{piece.file.path}" for piece in plan.missing}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A disk with as much room as the test says."""
    disk = SimpleNamespace(free=100 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    yield disk


def test_text_to_image_takes_twelve_gigabytes_and_no_image_encoder(tmp_path: Path, free: SimpleNamespace) -> None:
    plan = planned([PRIOR, DECODER], Pretended(tmp_path))
    weights = 4_104_940_968 + 2_778_702_976 + 5_012_309_584 + 271_380_364  # spec, section 0
    assert weights < plan.coming == plan.bytes < weights + 2e6
    assert not any("image_encoder" in path or path.endswith(".bin") for path in paths(plan))
    assert "kandinsky-2-2-prior/image_processor/preprocessor_config.json" in paths(plan)
    assert str(plan) == f"fetching kandinsky-2.2: 12.2 GB in 17 files, to {tmp_path} (100.0 GB free there)"
    sizes = [piece.file.bytes for piece in plan.missing]
    assert sizes == sorted(sizes)


def test_a_picture_among_the_inputs_takes_the_image_encoder_too(tmp_path: Path, free: SimpleNamespace) -> None:
    plan = planned([IMAGE_ENCODER], Pretended(tmp_path))
    assert paths(plan) == {f"kandinsky-2-2-prior/image_encoder/{name}" for name in ("config.json", "model.safetensors")}


def test_a_content_that_decoders_share_is_counted_once(tmp_path: Path, free: SimpleNamespace) -> None:
    movq = 271_380_364
    apart = [planned([part], Pretended(tmp_path)).coming for part in (DECODER, INPAINT, DEPTH)]
    together = planned([DECODER, INPAINT, DEPTH], Pretended(tmp_path)).coming
    assert sum(apart) - 2 * movq - 3000 < together <= sum(apart) - 2 * movq
    there = "kandinsky-community/kandinsky-2-2-decoder/movq/diffusion_pytorch_model.safetensors"
    assert planned([DECODER, INPAINT], Pretended(tmp_path, {there})).coming < sum(apart[:2]) - 2 * movq


def test_what_is_here_or_half_here_is_not_counted(tmp_path: Path, free: SimpleNamespace) -> None:
    prior = "kandinsky-community/kandinsky-2-2-prior/"
    pretended = Pretended(
        tmp_path,
        {prior + "prior/diffusion_pytorch_model.safetensors"},
        {prior + "text_encoder/model.safetensors": 2_000_000_000},
    )
    plan = planned([PRIOR], pretended)
    assert 778_702_976 < plan.coming < 778_702_976 + 2e6
    assert "780.1 MB in 10 files, of 6.9 GB in all" in str(plan)


def test_no_room_is_told_before_anything_is_fetched(tmp_path: Path, free: SimpleNamespace) -> None:
    free.free = 3 * GB
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"takes 12\.2 GB, and 3\.0 GB is free for .*set HF_HOME"):
        hub.fetch(MODEL, say=said.append, hub=Pretended(tmp_path))
    (sentence,) = said
    assert "12.2 GB in 17 files" in sentence and "3.0 GB free there" in sentence and "3.7 GB more" in sentence


def test_without_a_hub_the_commands_for_elsewhere_are_told(tmp_path: Path, free: SimpleNamespace) -> None:
    with pytest.raises(CheckpointError) as refused:
        hub.fetch(MODEL, say=lambda _: None, hub=Pretended(tmp_path))
    sentence = str(refused.value)
    assert "no hub can be reached (the cable is out)" in sentence
    for part, repository in list(catalog.published()[MODEL].items())[:2]:
        assert f"`hf download {repository.name} --revision {repository.revision} " in sentence
        assert f"--local-dir kandinsky-2.2/{part}`" in sentence
    assert sentence.endswith("pass that folder with --model kandinsky-2.2") and "\n" not in sentence


def test_without_the_client_its_installation_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"pip install 'kandinsky22\[hub\]', or fetch the weights elsewhere, with"
    ):
        hub.fetch(MODEL, say=print)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="fetch them once with"):
        locate.part_folders(MODEL)


# A little hub with a real client


SMALL, LARGE_A, LARGE_B = b'{"a": 1}', bytes(range(256)) * 80, bytes(reversed(range(256))) * 64
FILES = {
    "me/little-prior": {
        "model_index.json": SMALL,
        "prior/config.json": SMALL,
        "prior/diffusion_pytorch_model.safetensors": LARGE_A,
        "image_encoder/model.safetensors": LARGE_A + LARGE_B,
    },
    "me/little-decoder": {
        "model_index.json": SMALL,
        "unet/diffusion_pytorch_model.safetensors": LARGE_B,
        "movq/diffusion_pytorch_model.safetensors": LARGE_A,  # the same as the prior's, to be fetched once
    },
}
UNET = File("unet/diffusion_pytorch_model.safetensors", len(LARGE_B), hashlib.sha256(LARGE_B).hexdigest())


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LittleHub]:
    """A hub that serves a published model called "little"."""
    import huggingface_hub

    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(hugging_face, "LARGE", 4096)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()
    with serving(LittleHub(FILES)) as served:
        told = {PRIOR: served.repository("me/little-prior"), DECODER: served.repository("me/little-decoder")}
        monkeypatch.setattr(catalog, "published", lambda: {"little": told})
        yield served
    huggingface_hub.close_session()


def client(served: LittleHub, tmp_path: Path) -> HuggingFace:
    return HuggingFace(served.endpoint, tmp_path / "cache", quiet=True)


def fetched(served: LittleHub, tmp_path: Path, *parts: str) -> dict[str, Path]:
    return hub.fetch("little", parts or (PRIOR, DECODER), say=lambda _: None, hub=client(served, tmp_path))


def test_only_what_is_needed_comes_and_comes_once(little: LittleHub, tmp_path: Path) -> None:
    found = fetched(little, tmp_path)
    assert (found[PRIOR] / "prior" / "config.json").read_bytes() == SMALL
    assert (found[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert (found[DECODER] / "movq" / "diffusion_pytorch_model.safetensors").read_bytes() == LARGE_A
    assert not (found[PRIOR] / "image_encoder").exists()
    assert little.sent == len(LARGE_A) + len(LARGE_B)
    asked = len(little.log)
    assert fetched(little, tmp_path) == found
    assert len(little.log) == asked, "whoever has everything asks nobody"

    assert fetched(little, tmp_path, IMAGE_ENCODER) == {PRIOR: found[PRIOR]}
    assert little.sent == 2 * (len(LARGE_A) + len(LARGE_B))


def test_who_is_logged_in_is_given_what_others_are_not(
    little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token goes to the hub; the little hub breaks off if it goes to the place that large files are sent from."""
    little.refuses.add("me/little-decoder")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (fetched(little, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B


def test_what_the_cache_holds_needs_no_hub(little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="are not here"):
        locate.part_folders("little")
    found = fetched(little, tmp_path, PRIOR)
    assert locate.part_folders("little") == found
    found = fetched(little, tmp_path)
    assert locate.part_folders("little") == found
    (found[DECODER] / UNET.path).unlink()
    assert locate.part_folders("little").keys() == {PRIOR}, "half a decoder is none"


def test_an_interrupted_file_goes_on_where_it_was(little: LittleHub, tmp_path: Path) -> None:
    """As `kill -9` leaves it: a part of the file, and no word."""
    part = client(little, tmp_path)._part(little.repository("me/little-decoder"), UNET)
    part.parent.mkdir(parents=True)
    part.write_bytes(LARGE_B[:10_000])
    plan = hub.plan("little", hub._pieces(catalog.published()["little"], [DECODER]), client(little, tmp_path))
    assert plan.coming == len(SMALL) + len(LARGE_A) + len(LARGE_B) - 10_000
    found = fetched(little, tmp_path)
    assert (found[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert f"GET content/{UNET.sha256} bytes=10000-" in little.log
    assert little.sent == len(LARGE_A) + len(LARGE_B) - 10_000
    assert not part.exists()


def test_a_line_that_breaks_is_taken_up_again(
    little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    little.breaks_after = 5_000
    assert (fetched(little, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert any("bytes=5000-" in asked for asked in little.log)


def test_two_at_once_fetch_a_content_once(little: LittleHub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: fetched(little, tmp_path), range(2))
    assert first == second and (first[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert little.sent == len(LARGE_A) + len(LARGE_B)


@pytest.mark.parametrize("lost", [UNET.path, "model_index.json"])
def test_only_what_is_lost_comes_again(little: LittleHub, tmp_path: Path, lost: str) -> None:
    found = fetched(little, tmp_path)
    for place in ((found[DECODER] / lost).resolve(), found[DECODER] / lost):
        place.unlink()
    little.log.clear()
    fetched(little, tmp_path)
    named = [asked for asked in little.log if "content/" not in asked]
    assert named and all(lost in asked for asked in named)


def test_a_wrong_content_is_removed_and_named(little: LittleHub, tmp_path: Path) -> None:
    part = client(little, tmp_path)._part(little.repository("me/little-decoder"), UNET)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(10_000))  # of the right size in the end, and not the file
    with pytest.raises(
        CheckpointError, match=r"unet/\S+ of me/little-decoder is not the file .* SHA-256 is .* removed"
    ):
        fetched(little, tmp_path)
    assert (fetched(little, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B


def test_what_others_put_into_the_cache_is_checked_too_once(
    little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetched(little, tmp_path)[DECODER] / UNET.path
    shutil.rmtree(tmp_path / "ours")
    read: list[Path] = []
    truly = checked.sha256
    monkeypatch.setattr(checked, "sha256", lambda path: read.append(path) or truly(path))
    fetched(little, tmp_path)
    assert path in read
    read.clear()
    fetched(little, tmp_path)
    assert read == []
    path.resolve().write_bytes(LARGE_B[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is not the file that was published"):
        fetched(little, tmp_path)
    assert not path.exists()


def test_a_hub_that_offers_another_file_is_not_listened_to(
    little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = {**FILES, "me/little-decoder": {**FILES["me/little-decoder"], UNET.path: LARGE_A + LARGE_A}}
    monkeypatch.setattr(little, "repositories", forged)
    with pytest.raises(CheckpointError, match=r"the hub offers .* nothing was fetched"):
        fetched(little, tmp_path)


@pytest.mark.parametrize("how", ["gated", "nobody knows it"])
def test_a_refused_login_is_one_sentence(little: LittleHub, tmp_path: Path, how: str) -> None:
    if how == "gated":
        little.refuses.add("me/little-decoder")
    else:
        little.repositories = {"me/little-prior": FILES["me/little-prior"]}
    with pytest.raises(CheckpointError, match=r"the hub does not give little to this user .* log in with") as refused:
        fetched(little, tmp_path)
    assert "\n" not in str(refused.value)


def test_no_answer_is_one_sentence(little: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    nowhere = HuggingFace("http://127.0.0.1:9", tmp_path / "cache", quiet=True)
    with pytest.raises(CheckpointError, match=r"no hub can be reached .*hf download me/little-prior") as refused:
        hub.fetch("little", say=lambda _: None, hub=nowhere)
    assert "\n" not in str(refused.value)


def test_any_repository_can_be_a_pipeline(little: LittleHub, tmp_path: Path) -> None:
    """Also one that nobody pinned; without a hub, from the cache alone."""
    catalog.published()["little"].clear()
    folder = hub.snapshot("me/little-decoder", subfolders=["unet"], say=lambda _: None, hub=client(little, tmp_path))
    assert (folder / UNET.path).read_bytes() == LARGE_B and (folder / "model_index.json").exists()
    assert not (folder / "movq").exists()
    nowhere = HuggingFace("http://127.0.0.1:9", tmp_path / "cache")
    offline = hub.snapshot(
        "me/little-decoder", revision=little.revision, local_files_only=True, say=lambda _: None, hub=nowhere
    )
    assert offline == folder
    with pytest.raises(CheckpointError, match="me/little-prior is not in the hub's cache"):
        hub.snapshot("me/little-prior", local_files_only=True, say=lambda _: None, hub=nowhere)
    assert hub.snapshot(str(tmp_path), say=lambda _: None) == tmp_path
    with pytest.raises(CheckpointError, match="there is no folder nowhere"):
        hub.snapshot("nowhere", say=lambda _: None)


def test_one_copy_of_weights_is_chosen_and_what_is_not_ours_is_left() -> None:
    names = [
        "README.md",
        "model_index.json",
        "zero_image_embed.safetensors",
        "kandinsky.ckpt",
        ".gitattributes",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "movq/diffusion_pytorch_model.bin",
        "movq/config.json",
        "tokenizer/merges.txt",
        "unet/onnx/model.onnx",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
    ]
    files = [File(name, 5, None) for name in names]
    plain = {file.path for file in hub.chosen(files, None, None)}
    assert plain == set(names) - {
        "kandinsky.ckpt",
        ".gitattributes",
        "unet/onnx/model.onnx",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    }
    half = {file.path for file in hub.chosen(files, ["unet", "movq"], "fp16")}
    assert {path for path in half if "pytorch_model" in path} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "movq/diffusion_pytorch_model.bin",
    }


@pytest.mark.parametrize(
    "front",
    [
        "prior: \n- me/prior\ntags:\n- x\n",  # as the published cards have it
        "license: mit\nprior:\n  - me/prior\n  - me/other\n",
        "prior: me/prior\n",
        "prior: 'me/prior'  # ours\n",
        "prior: [me/prior, me/other]\n",
        "tags:\n- prior: no\n",
        "prior:\ntags:\n- x\n",
        "the_prior: me/prior\n",
    ],
)
def test_the_card_names_the_prior_as_yaml_understands_it(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}---\n\nprior: not here\n")
    meant = yaml.safe_load(front).get("prior")
    assert hub.prior_of(tmp_path) == (meant[0] if isinstance(meant, list) else meant)


@pytest.mark.parametrize(
    "card", ["no front matter\nprior: me/prior\n---\n", "", "---\nprior: me/prior\nno end\n", None]
)
def test_a_card_without_front_matter_names_none(tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert hub.prior_of(tmp_path) is None
