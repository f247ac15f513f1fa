"""The file of API keys."""

from __future__ import annotations

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mmserve.errors import ConfigError
from mmserve.keys import PREFIX, Key, add_key, find_key, load_keys, new_key, revoke_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "keys.json"


def test_a_key_is_256_random_bits_and_is_not_in_its_file(path: Path) -> None:
    key, secret = new_key("alice")
    add_key(path, key)
    assert secret.startswith(PREFIX)
    assert len(secret.removeprefix(PREFIX)) == 43  # 32 bytes in base64
    text = path.read_text()
    assert secret not in text
    assert secret.removeprefix(PREFIX) not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert len({new_key("x")[1] for _ in range(100)}) == 100


def test_file_is_readable_by_its_owner_only(path: Path) -> None:
    add_key(path, new_key("alice")[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    add_key(path, new_key("bob")[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {each.name for each in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_what_was_added_is_loaded_and_found(path: Path) -> None:
    alice, first = new_key("alice", admin=True, requests_per_minute=3, cache_group="team")
    bob, second = new_key("bob")
    add_key(path, alice)
    add_key(path, bob)
    loaded = load_keys(path)
    assert loaded == (alice, bob)
    assert find_key(loaded, first) == alice
    assert find_key(loaded, second) == bob
    for wrong in ("", PREFIX, first[:-1], first + "x", first.upper(), alice.digest, "\ud800"):
        assert find_key(loaded, wrong) is None


def test_every_key_is_compared_in_constant_time_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [new_key(f"k{i}") for i in range(5)]
    compared: list[str] = []

    def compare(a: str, b: str) -> bool:
        compared.append(a)
        return a == b

    monkeypatch.setattr("mmserve.keys.hmac.compare_digest", compare)
    for _, secret in [*made, (made[0][0], "none")]:
        compared.clear()
        find_key([key for key, _ in made], secret)
        assert compared == [key.digest for key, _ in made]


def test_revoked_is_gone_and_its_name_is_free(path: Path) -> None:
    alice, secret = new_key("alice")
    add_key(path, alice)
    assert revoke_key(path, "alice") == alice
    assert load_keys(path) == ()
    again, _ = new_key("alice")
    add_key(path, again)
    assert again.identity != alice.identity
    assert find_key(load_keys(path), secret) is None
    with pytest.raises(ConfigError, match=r'no key called "bob".*alice'):
        revoke_key(path, "bob")


def test_two_keys_of_one_name_are_refused(path: Path) -> None:
    add_key(path, new_key("alice")[0])
    with pytest.raises(ConfigError, match='same name "alice"'):
        add_key(path, new_key("alice")[0])
    assert len(load_keys(path)) == 1


def test_keys_added_at_once_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_key(path, new_key(f"k{i}")[0]), range(16)))
    assert {key.name for key in load_keys(path)} == {f"k{i}" for i in range(16)}


@pytest.mark.parametrize("name", ["", " ", "a b", "../x", "-x", "a\n", "é", "x" * 65])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match="name must be"):
        new_key(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "x"},
        {"digest": "A" * 64},
        {"identity": "../../etc"},
        {"requests_per_minute": -1},
        {"requests_per_minute": "600"},
        {"concurrency": True},
        {"admin": 1},
        {"cache_group": "a/b"},
        {"name": None},
        {"surplus": 1},
    ],
)
def test_damaged_entries_are_refused(path: Path, changes: dict[str, Any]) -> None:
    add_key(path, new_key("alice")[0])
    content = json.loads(path.read_text())
    content["keys"][0] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="damaged"):
        load_keys(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [1]}'])
def test_files_that_are_none_of_ours_are_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        load_keys(path)


def test_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(ConfigError, match="mmserve keys add"):
        load_keys(path)


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(path, new_key("alice")[0])
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmserve.keys.os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        add_key(path, new_key("bob")[0])
    assert path.read_bytes() == before
    assert {each.name for each in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_defaults_are_limits() -> None:
    key = Key("a", "0" * 16, "0" * 64)
    assert min(key.requests_per_minute, key.concurrency, key.pictures_per_minute) > 0
    assert not key.admin
