"""Who may ask what: keys, hosts and origins. Closed by default.

While no key exists, only loopback addresses are served, and any credentials that a client sends there are accepted.
"""

import base64
import binascii
import hmac
import ipaddress
import time
from collections.abc import Iterable, Mapping

from kandinsky22.server.errors import ApiError
from kandinsky22.server.store import Key, Store, hash_secret

SCOPES = ("paint", "metrics")
"""What a key may allow: everything but figures of all clients; those figures."""
LOCAL = Key("local", frozenset(SCOPES), max_jobs=1000)
"""Who asks while no key exists."""
CACHED_SECONDS = 2.0  # for which a key that was removed may still be accepted


class Access:
    """Decides for each request who asks. hosts: names besides loopback under which the server may be reached."""

    def __init__(self, store: Store, hosts: Iterable[str] = ()) -> None:
        self.store = store
        self.hosts = frozenset(host.lower() for host in hosts)
        self._keys: dict[str, Key] = {}
        self._read = -CACHED_SECONDS

    def keys(self) -> dict[str, Key]:
        """The keys, by the hash of their secret."""
        if time.monotonic() - self._read >= CACHED_SECONDS:
            self._keys, self._read = self.store.keys(), time.monotonic()
        return self._keys

    def who(self, headers: Mapping[str, str], scope: str = "paint") -> Key:
        """The key of a request, from its headers; it allows `scope`. Raises `ApiError`."""
        keys = self.keys()
        if not keys:
            return LOCAL
        secret = _secret(headers)
        if secret is None:
            raise ApiError("unauthorized", "this server needs a key; send it as Authorization: Bearer KEY")
        digest = hash_secret(secret)
        for known, key in keys.items():
            if hmac.compare_digest(known, digest):
                if scope not in key.scopes:
                    raise ApiError("forbidden", f"this key does not allow {scope}; ask the operator for one that does")
                return key
        raise ApiError("unauthorized", "this key is not known here; ask the operator of this server for one")

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Raises `ApiError` for a name under which this server is not to be reached (DNS rebinding), and for pages of
        other origins."""
        if not self._is_ours(headers.get("host", "localhost")):
            raise ApiError("forbidden", "this host name is not served; start the server with --allow-host NAME")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin.partition("://")[2]):  # "null" is any page in a sandbox
            raise ApiError("forbidden", "pages of this origin may not use the server; start it with --allow-host NAME")

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        return is_loopback(name) or name in self.hosts


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A host header without its port, in lower case."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _secret(headers: Mapping[str, str]) -> str | None:
    """The secret in a request's headers: a bearer token, the password of basic authentication, or FusionBrain's."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return password or user
    for header, prefix in (("x-secret", "Secret "), ("x-key", "Key ")):
        if value := headers.get(header, "").removeprefix(prefix).strip():
            return value
    return None
