"""Content Credentials (C2PA 2.1): pictures signed with the operator's certificate. Needs the extra `c2pa`.

The manifest has one action, `c2pa.created`, with IPTC's source type. No time-stamping service is asked: the server
connects to nothing.
"""

import io
from pathlib import Path

import kandinsky22
from kandinsky22.imaging.file_texts import Format
from kandinsky22.imaging.provenance import SOURCE_TYPE
from kandinsky22.server.picture_files import Sign

ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
MANIFEST = {
    "claim_generator_info": [{"name": "kandinsky22", "version": kandinsky22.__version__}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
        }
    ],
}


def signer(certificates: Path, key: Path, algorithm: str = "es256") -> Sign:
    """What signs picture files.

    certificates: a PEM file of the operator's certificate and those that issued it. key: the PEM file of its private
    key. algorithm: one of `ALGORITHMS`, which the key is for. Raises `ValueError` if they cannot be used.
    """
    try:
        import c2pa  # type: ignore[import-untyped,import-not-found,unused-ignore]  # in an extra
    except ModuleNotFoundError:
        raise ValueError("signing needs c2pa-python; install it: pip install 'kandinsky22[c2pa]'") from None
    if algorithm not in ALGORITHMS:
        raise ValueError(f"--c2pa-algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    try:
        info = c2pa.C2paSignerInfo(algorithm.encode(), certificates.read_bytes(), key.read_bytes(), None)
        credentials = c2pa.Signer.from_info(info)
    except OSError as error:
        raise ValueError(
            f"cannot read {error.filename}: {error.strerror}; see --c2pa-certificate and --c2pa-key"
        ) from None
    except c2pa.C2paError as error:
        raise ValueError(f"{certificates} and {key} cannot sign pictures: {error}") from None

    def sign(file: bytes, format: Format) -> bytes:
        signed = io.BytesIO()
        with c2pa.Builder(MANIFEST) as builder:
            builder.sign(credentials, f"image/{format}", io.BytesIO(file), signed)
        return signed.getvalue()

    return sign
