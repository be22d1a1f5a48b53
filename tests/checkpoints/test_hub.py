"""Weights from the hub: only what is needed is fetched, after it was announced, and verified; errors are one sentence.

Planning is tested with a fake hub of the published sizes; fetching with a local hub that the real client talks to over
HTTP. No request leaves this machine.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.checkpoints.local_hub import LocalHub, serving

from kandinsky22.checkpoints import catalog, hub, hugging_face, locate, verify
from kandinsky22.checkpoints.catalog import DECODER, DEPTH, IMAGE_ENCODER, INPAINT, PRIOR, File, Repository
from kandinsky22.checkpoints.hub_client import UnreachableError
from kandinsky22.checkpoints.hugging_face import HuggingFace
from kandinsky22.checkpoints.json_files import CheckpointError

GB = 10**9
MODEL = "kandinsky-2.2"
UNRESOLVABLE = "http://hub.invalid"  # RFC 6761: no name in .invalid exists


class FakeHub:
    """A hub that cannot be reached, with the published files in its cache by name alone.

    present: files that are in the cache; partial: bytes of files whose download was interrupted.
    """

    def __init__(self, folder: Path, present: set[str] | None = None, partial: dict[str, int] | None = None) -> None:
        self.folder, self.present, self.partial = folder, present or set(), partial or {}

    def cached(self, repository: Repository, path: str) -> Path | None:
        return self.folder / repository.name / path if f"{repository.name}/{path}" in self.present else None

    def partial_bytes(self, repository: Repository, file: File) -> int:
        return self.partial.get(f"{repository.name}/{file.path}", 0)

    def list(self, name: str, revision: str) -> Repository:
        raise UnreachableError("the cable is out")

    def download(self, repository: Repository, file: File, twin: Path | None) -> Path:
        raise UnreachableError("the cable is out")


def plan_for(parts: list[str], fake: FakeHub) -> hub.DownloadPlan:
    """The plan to download some parts of the published model."""
    return hub.plan_download(MODEL, list(hub.files_of(catalog.published()[MODEL], parts)), fake)


def paths(plan: hub.DownloadPlan) -> set[str]:
    return {f"{piece.repository.name.partition('/')[2]}/{piece.file.path}" for piece in plan.missing}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A disk whose free space the test sets."""
    disk = SimpleNamespace(free=100 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    yield disk


def test_text_to_image_fetches_twelve_gigabytes_without_the_image_encoder(
    tmp_path: Path, free: SimpleNamespace
) -> None:
    plan = plan_for([PRIOR, DECODER], FakeHub(tmp_path))
    weights = 4_104_940_968 + 2_778_702_976 + 5_012_309_584 + 271_380_364  # spec, section 0
    assert weights < plan.bytes_to_fetch == plan.bytes < weights + 2e6
    assert not any("image_encoder" in path or path.endswith(".bin") for path in paths(plan))
    assert "kandinsky-2-2-prior/image_processor/preprocessor_config.json" in paths(plan)
    assert str(plan) == f"fetching kandinsky-2.2: 12.2 GB in 17 files, to {tmp_path} (100.0 GB free there)"
    sizes = [piece.file.bytes for piece in plan.missing]
    assert sizes == sorted(sizes)


def test_the_image_encoder_is_planned_by_its_own_name(tmp_path: Path, free: SimpleNamespace) -> None:
    plan = plan_for([IMAGE_ENCODER], FakeHub(tmp_path))
    assert paths(plan) == {f"kandinsky-2-2-prior/image_encoder/{name}" for name in ("config.json", "model.safetensors")}


def test_a_file_that_decoders_share_is_counted_once(tmp_path: Path, free: SimpleNamespace) -> None:
    movq = 271_380_364
    separate = [plan_for([part], FakeHub(tmp_path)).bytes_to_fetch for part in (DECODER, INPAINT, DEPTH)]
    together = plan_for([DECODER, INPAINT, DEPTH], FakeHub(tmp_path)).bytes_to_fetch
    assert sum(separate) - 2 * movq - 3000 < together <= sum(separate) - 2 * movq
    cached = "kandinsky-community/kandinsky-2-2-decoder/movq/diffusion_pytorch_model.safetensors"
    assert plan_for([DECODER, INPAINT], FakeHub(tmp_path, {cached})).bytes_to_fetch < sum(separate[:2]) - 2 * movq


def test_cached_and_partial_files_are_not_counted(tmp_path: Path, free: SimpleNamespace) -> None:
    prior = "kandinsky-community/kandinsky-2-2-prior/"
    fake = FakeHub(
        tmp_path,
        {prior + "prior/diffusion_pytorch_model.safetensors"},
        {prior + "text_encoder/model.safetensors": 2_000_000_000},
    )
    plan = plan_for([PRIOR], fake)
    assert 778_702_976 < plan.bytes_to_fetch < 778_702_976 + 2e6
    assert "780.1 MB in 10 files, of 6.9 GB in all" in str(plan)


def test_a_full_disk_is_reported_before_anything_is_fetched(tmp_path: Path, free: SimpleNamespace) -> None:
    free.free = 3 * GB
    announced: list[str] = []
    with pytest.raises(CheckpointError, match=r"takes 12\.2 GB, and 3\.0 GB is free for .*set HF_HOME"):
        hub.fetch(MODEL, say=announced.append, hub=FakeHub(tmp_path))
    (sentence,) = announced
    assert "12.2 GB in 17 files" in sentence and "3.0 GB free there" in sentence and "3.7 GB more" in sentence


def test_without_a_hub_the_error_names_the_download_commands(tmp_path: Path, free: SimpleNamespace) -> None:
    with pytest.raises(CheckpointError) as refused:
        hub.fetch(MODEL, say=lambda _: None, hub=FakeHub(tmp_path))
    sentence = str(refused.value)
    assert "no hub can be reached (the cable is out)" in sentence
    for part, repository in list(catalog.published()[MODEL].items())[:2]:
        assert f"`hf download {repository.name} --revision {repository.revision} " in sentence
        assert f"--local-dir kandinsky-2.2/{part}`" in sentence
    assert sentence.endswith("pass that folder with --model kandinsky-2.2") and "\n" not in sentence


def test_without_the_client_the_error_names_its_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"pip install 'kandinsky22\[hub\]', or fetch the weights elsewhere, with"
    ):
        hub.fetch(MODEL, say=print)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="fetch them once with"):
        locate.part_folders(MODEL)


# A local hub and the real client


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
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub that serves a published model called "little"."""
    import huggingface_hub

    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr(hugging_face, "LARGE", 4096)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()
    with serving(LocalHub(FILES)) as served:
        parts = {PRIOR: served.repository("me/little-prior"), DECODER: served.repository("me/little-decoder")}
        monkeypatch.setattr(catalog, "published", lambda: {"little": parts})
        yield served
    huggingface_hub.close_session()


def client(served: LocalHub, tmp_path: Path) -> HuggingFace:
    return HuggingFace(served.endpoint, tmp_path / "cache", quiet=True)


def fetch(served: LocalHub, tmp_path: Path, *parts: str) -> dict[str, Path]:
    return hub.fetch("little", parts or (PRIOR, DECODER), say=lambda _: None, hub=client(served, tmp_path))


def test_needed_files_are_fetched_once(local: LocalHub, tmp_path: Path) -> None:
    folders = fetch(local, tmp_path)
    assert (folders[PRIOR] / "prior" / "config.json").read_bytes() == SMALL
    assert (folders[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert (folders[DECODER] / "movq" / "diffusion_pytorch_model.safetensors").read_bytes() == LARGE_A
    assert not (folders[PRIOR] / "image_encoder").exists()
    assert local.sent == len(LARGE_A) + len(LARGE_B)
    requests = len(local.log)
    assert fetch(local, tmp_path) == folders
    assert len(local.log) == requests, "with everything in the cache no request is sent"

    assert fetch(local, tmp_path, IMAGE_ENCODER) == {PRIOR: folders[PRIOR]}
    assert local.sent == 2 * (len(LARGE_A) + len(LARGE_B))


def test_a_gated_repository_is_fetched_with_a_token(
    local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is sent to the hub alone; the local hub fails if it is sent to the host of the large files."""
    local.gated.add("me/little-decoder")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (fetch(local, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B


def test_complete_parts_in_the_cache_are_found_without_a_hub(
    local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="are not here"):
        locate.part_folders("little")
    folders = fetch(local, tmp_path, PRIOR)
    assert locate.part_folders("little") == folders
    folders = fetch(local, tmp_path)
    assert locate.part_folders("little") == folders
    (folders[DECODER] / UNET.path).unlink()
    assert locate.part_folders("little").keys() == {PRIOR}, "an incomplete decoder does not count"


def test_an_interrupted_download_is_resumed(local: LocalHub, tmp_path: Path) -> None:
    """As `kill -9` leaves it: a part of the file."""
    part = client(local, tmp_path).partial_path(local.repository("me/little-decoder"), UNET)
    part.parent.mkdir(parents=True)
    part.write_bytes(LARGE_B[:10_000])
    plan = hub.plan_download("little", hub.files_of(catalog.published()["little"], [DECODER]), client(local, tmp_path))
    assert plan.bytes_to_fetch == len(SMALL) + len(LARGE_A) + len(LARGE_B) - 10_000
    folders = fetch(local, tmp_path)
    assert (folders[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert f"GET content/{UNET.sha256} bytes=10000-" in local.log
    assert local.sent == len(LARGE_A) + len(LARGE_B) - 10_000
    assert not part.exists()


def test_a_broken_connection_is_resumed(local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    local.breaks_after = 5_000
    assert (fetch(local, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert any("bytes=5000-" in request for request in local.log)


def test_simultaneous_downloads_fetch_a_file_once(local: LocalHub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: fetch(local, tmp_path), range(2))
    assert first == second and (first[DECODER] / UNET.path).read_bytes() == LARGE_B
    assert local.sent == len(LARGE_A) + len(LARGE_B)


@pytest.mark.parametrize("lost", [UNET.path, "model_index.json"])
def test_only_a_lost_file_is_fetched_again(local: LocalHub, tmp_path: Path, lost: str) -> None:
    folders = fetch(local, tmp_path)
    for place in ((folders[DECODER] / lost).resolve(), folders[DECODER] / lost):
        place.unlink()
    local.log.clear()
    fetch(local, tmp_path)
    requests = [request for request in local.log if "content/" not in request]
    assert requests and all(lost in request for request in requests)


def test_a_file_with_wrong_content_is_removed_and_named(local: LocalHub, tmp_path: Path) -> None:
    part = client(local, tmp_path).partial_path(local.repository("me/little-decoder"), UNET)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(10_000))  # the right size in the end, with other content
    with pytest.raises(
        CheckpointError, match=r"unet/\S+ of me/little-decoder is not the file .* SHA-256 is .* removed"
    ):
        fetch(local, tmp_path)
    assert (fetch(local, tmp_path)[DECODER] / UNET.path).read_bytes() == LARGE_B


def test_files_of_other_programs_in_the_cache_are_verified_once(
    local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(local, tmp_path)[DECODER] / UNET.path
    shutil.rmtree(tmp_path / "ours")
    read: list[Path] = []
    sha256 = verify.sha256
    monkeypatch.setattr(verify, "sha256", lambda path: read.append(path) or sha256(path))
    fetch(local, tmp_path)
    assert path in read
    read.clear()
    fetch(local, tmp_path)
    assert read == []
    path.resolve().write_bytes(LARGE_B[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is not the file that was published"):
        fetch(local, tmp_path)
    assert not path.exists()


def test_a_hub_that_offers_another_file_is_refused(
    local: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = {**FILES, "me/little-decoder": {**FILES["me/little-decoder"], UNET.path: LARGE_A + LARGE_A}}
    monkeypatch.setattr(local, "repositories", forged)
    with pytest.raises(CheckpointError, match=r"the hub offers .* nothing was fetched"):
        fetch(local, tmp_path)


@pytest.mark.parametrize("reason", ["gated", "unknown"])
def test_denied_access_is_reported_in_one_sentence(local: LocalHub, tmp_path: Path, reason: str) -> None:
    if reason == "gated":
        local.gated.add("me/little-decoder")
    else:
        local.repositories = {"me/little-prior": FILES["me/little-prior"]}
    with pytest.raises(CheckpointError, match=r"the hub does not give little to this user .* log in with") as refused:
        fetch(local, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("endpoint", "reason"), [("http://127.0.0.1:9", "Connection refused"), (UNRESOLVABLE, "hub.invalid: ")]
)
def test_an_unreachable_hub_is_reported_in_one_sentence(
    local: LocalHub, tmp_path: Path, endpoint: str, reason: str
) -> None:
    """A refused connection where the files are listed, since the client tries a download for half a minute."""
    unreachable = HuggingFace(endpoint, tmp_path / "cache", quiet=True)
    with pytest.raises(
        CheckpointError, match=rf"no hub can be reached \(.*{reason}.*hf download me/little-prior"
    ) as refused:
        hub.snapshot("me/little-prior", say=lambda _: None, hub=unreachable)
    assert "\n" not in str(refused.value)


def test_a_download_without_a_resolvable_hub_names_the_download_commands(local: LocalHub, tmp_path: Path) -> None:
    unreachable = HuggingFace(UNRESOLVABLE, tmp_path / "cache", quiet=True)
    with pytest.raises(CheckpointError, match=r"no hub can be reached .*hf download me/little-prior") as refused:
        hub.fetch("little", say=lambda _: None, hub=unreachable)
    assert "\n" not in str(refused.value)


def test_any_repository_can_be_fetched_as_a_pipeline(local: LocalHub, tmp_path: Path) -> None:
    """Also one whose commit is not pinned; without a hub, from the cache."""
    catalog.published()["little"].clear()
    folder = hub.snapshot("me/little-decoder", subfolders=["unet"], say=lambda _: None, hub=client(local, tmp_path))
    assert (folder / UNET.path).read_bytes() == LARGE_B and (folder / "model_index.json").exists()
    assert not (folder / "movq").exists()
    unreachable = HuggingFace("http://127.0.0.1:9", tmp_path / "cache")
    offline = hub.snapshot(
        "me/little-decoder", revision=local.revision, local_files_only=True, say=lambda _: None, hub=unreachable
    )
    assert offline == folder
    with pytest.raises(CheckpointError, match="me/little-prior is not in the hub's cache"):
        hub.snapshot("me/little-prior", local_files_only=True, say=lambda _: None, hub=unreachable)
    assert hub.snapshot(str(tmp_path), say=lambda _: None) == tmp_path
    with pytest.raises(CheckpointError, match="there is no folder nowhere"):
        hub.snapshot("nowhere", say=lambda _: None)


def test_one_copy_of_the_weights_is_chosen_and_other_files_are_left_out() -> None:
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
    plain = {file.path for file in hub.choose_files(files, None, None)}
    assert plain == set(names) - {
        "kandinsky.ckpt",
        ".gitattributes",
        "unet/onnx/model.onnx",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    }
    half = {file.path for file in hub.choose_files(files, ["unet", "movq"], "fp16")}
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
def test_the_prior_named_in_a_model_card_is_read_as_yaml_reads_it(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}---\n\nprior: not here\n")
    expected = yaml.safe_load(front).get("prior")
    assert hub.prior_of(tmp_path) == (expected[0] if isinstance(expected, list) else expected)


@pytest.mark.parametrize(
    "card", ["no front matter\nprior: me/prior\n---\n", "", "---\nprior: me/prior\nno end\n", None]
)
def test_a_card_without_front_matter_names_no_prior(tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert hub.prior_of(tmp_path) is None
