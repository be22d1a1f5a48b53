"""Who may use a server: keys and their scopes, hosts, origins."""

import base64
from pathlib import Path

import pytest

from kandinsky22.server.access import LOCAL, Access, is_loopback
from kandinsky22.server.errors import ApiError
from kandinsky22.server.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_without_keys_any_credentials_are_accepted(store: Store) -> None:
    access = Access(store)
    assert access.who({}) == access.who({"authorization": "Bearer anything"}) == LOCAL


def test_each_way_to_send_a_key_works(store: Store) -> None:
    secret = store.add_key("ann", ["paint"], 4)
    access = Access(store)
    basic = base64.b64encode(f"user:{secret}".encode()).decode()
    for headers in (
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"Basic {basic}"},
        {"x-key": "Key public", "x-secret": f"Secret {secret}"},
    ):
        assert access.who(headers).name == "ann"


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic !"}])
def test_a_missing_or_unknown_key_is_refused(store: Store, headers: dict[str, str]) -> None:
    store.add_key("ann", ["paint"], 4)
    with pytest.raises(ApiError) as error:
        Access(store).who(headers)
    assert error.value.status == 401


def test_a_key_allows_its_scopes_alone(store: Store) -> None:
    secret = store.add_key("prometheus", ["metrics"], 1)
    access, headers = Access(store), {"authorization": f"Bearer {secret}"}
    assert access.who(headers, "metrics").name == "prometheus"
    with pytest.raises(ApiError) as error:
        access.who(headers)
    assert error.value.status == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8022", "localhost:1", "[::1]:8022", "Paint.example.org", "127.9.9.9"]
)
def test_loopback_and_allowed_hosts_are_served(store: Store, host: str) -> None:
    Access(store, ["paint.example.org"]).check_host({"host": host, "origin": f"http://{host}"})


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": ""},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost@evil.example"},
        {"host": "127.0.0.1", "origin": "http://evil.example"},
        {"host": "127.0.0.1", "origin": "null"},
        {"host": "127.0.0.1", "origin": ""},
    ],
)
def test_other_hosts_and_origins_are_refused(store: Store, headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as error:
        Access(store).check_host(headers)
    assert error.value.status == 403


def test_loopback_addresses_are_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.1", "example.org", "")))
