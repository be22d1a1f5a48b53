"""Pictures signed with an operator's certificate, which the test makes."""

import datetime
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22.imaging.file_texts import Format
from kandinsky22.imaging.images import encode
from kandinsky22.server.content_credentials import signer
from kandinsky22.server.picture_files import Sign

c2pa = pytest.importorskip("c2pa", reason="the extra c2pa is not installed")
x509 = pytest.importorskip("cryptography.x509")

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402  # come with c2pa-python
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

IMAGE = Image.effect_noise((64, 64), 50).convert("RGB")


def name(common: str) -> "x509.Name":
    names = x509.oid.NameOID
    return x509.Name(
        [x509.NameAttribute(names.ORGANIZATION_NAME, "Test"), x509.NameAttribute(names.COMMON_NAME, common)]
    )


def certificate(subject: str, key: ec.EllipticCurvePrivateKey, root: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate of `key` by `root`, of an authority if they are the same, in PEM."""
    now, is_root = datetime.datetime.now(datetime.UTC), key is root
    builder = x509.CertificateBuilder(name("root"), name(subject), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_root, path_length=None), True).add_extension(
        usage, True
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key())
    builder = builder.add_extension(issuer, False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    if not is_root:
        purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, True)
    made: bytes = builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return made


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """The files of an operator's certificates and of the key."""
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain, secret = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(certificate("operator", key, root) + certificate("root", root, root))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return chain, secret


@pytest.fixture
def sign(places: tuple[Path, Path]) -> Sign:
    return signer(*places)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_signed_file_names_its_source_and_keeps_its_pixels(sign: Sign, format: Format) -> None:
    signed = sign(encode(IMAGE, format, xmp=True), format)
    report = json.loads(c2pa.Reader(f"image/{format}", io.BytesIO(signed)).json())
    assert report["validation_state"] == "Valid"
    assert "trainedAlgorithmicMedia" in json.dumps(report["manifests"][report["active_manifest"]]["assertions"])
    plain = Image.open(io.BytesIO(encode(IMAGE, format)))
    assert (np.asarray(Image.open(io.BytesIO(signed))) == np.asarray(plain)).all()


def test_changed_file_is_not_valid(sign: Sign) -> None:
    signed = bytearray(sign(encode(IMAGE, "png"), "png"))
    signed[-60] ^= 1
    report = json.loads(c2pa.Reader("image/png", io.BytesIO(bytes(signed))).json())
    assert report["validation_state"] == "Invalid"


def test_files_that_cannot_sign_are_named(places: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = places
    with pytest.raises(ValueError, match=r"cannot read .*none\.pem"):
        signer(chain, tmp_path / "none.pem")
    with pytest.raises(ValueError, match="cannot sign pictures"):
        signer(key, chain)
    with pytest.raises(ValueError, match="--c2pa-algorithm must be one of"):
        signer(chain, key, "md5")
