"""Key files: what is made, what is taken, and what is refused in which words."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agent.trust.keys import KEYS_MAX, KeyFileError, PublicKey, trusted_keys
from agent.trust.private_key import PrivateKey
from tests.trust.signing import folder


@pytest.mark.parametrize("passphrase", [None, b"a long one"])
def test_a_private_key_comes_back_and_is_its_owners_alone(passphrase: bytes | None, tmp_path: Path) -> None:
    key, file = PrivateKey.new(), tmp_path / "a.key"
    key.save(file, passphrase)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert PrivateKey.load(file, passphrase).public == key.public
    assert (b"ENCRYPTED" in file.read_bytes()) == (passphrase is not None)


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    PrivateKey.new().save(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="no key is ever overwritten"):
        PrivateKey.new().save(tmp_path / "a.key")


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    PrivateKey.new().save(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        PrivateKey.load(tmp_path / "a.key")


@pytest.mark.parametrize(
    ("saved", "given", "words"),
    [
        (b"right", None, "it is encrypted"),
        (b"right", b"wrong", "passphrase is wrong"),
        (None, b"some", "not encrypted"),
    ],
)
def test_a_passphrase_that_does_not_fit(saved: bytes, given: bytes, words: str, tmp_path: Path) -> None:
    PrivateKey.new().save(tmp_path / "a.key", saved)
    with pytest.raises(KeyFileError, match=words):
        PrivateKey.load(tmp_path / "a.key", given)


def test_a_private_key_does_not_show_itself(tmp_path: Path) -> None:
    key = PrivateKey.new()
    key.save(tmp_path / "a.key")
    secret = "".join((tmp_path / "a.key").read_text().splitlines()[1:-1])
    assert secret not in repr(key) + str(key) + str(vars(key))
    assert key.public.id in repr(key)


def test_a_folder_of_keys(tmp_path: Path) -> None:
    one, other = PrivateKey.new(), PrivateKey.new()
    keys = folder(tmp_path / "trust", one, other, one)
    (keys / ".swp").write_text("an editor's")
    assert trusted_keys(keys) == {"0.pub": one.public, "1.pub": other.public, "2.pub": one.public}
    assert trusted_keys(tmp_path / "none") == {}


def rsa(file: Path) -> None:
    key = subprocess.run(["openssl", "genrsa", "1024"], check=True, capture_output=True).stdout
    file.write_bytes(subprocess.run(["openssl", "rsa", "-pubout"], input=key, check=True, capture_output=True).stdout)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda keys: (keys / "x.pub").write_text("hello"), "x.pub: it is no public key"),
        (lambda keys: PrivateKey.new().save(keys / "x.key"), "x.key: it is a private key, which belongs"),
        (lambda keys: rsa(keys / "x.pub"), "x.pub: it is a key of another kind"),
        (lambda keys: (keys / "sub").mkdir(), "sub: can't be read"),
        (lambda keys: (keys / "x.pub").symlink_to("/nonexistent"), "x.pub: can't be read"),
        (lambda keys: keys.chmod(0o777), "chmod go-w"),
        (lambda keys: folder(keys, *(PrivateKey.new() for _ in range(KEYS_MAX + 1))), "can be trusted at a time"),
    ],
)
def test_a_folder_that_is_not_right_counts_for_nothing(spoil: object, words: str, tmp_path: Path) -> None:
    keys = folder(tmp_path / "trust", PrivateKey.new())
    assert callable(spoil)
    spoil(keys)
    with pytest.raises(KeyFileError, match=words):
        trusted_keys(keys)


def test_openssl_makes_keys_that_are_taken(tmp_path: Path) -> None:
    pem = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519"], check=True, capture_output=True).stdout
    public = subprocess.run(["openssl", "pkey", "-pubout"], input=pem, check=True, capture_output=True).stdout
    (tmp_path / "k").write_bytes(pem)
    (tmp_path / "k").chmod(0o600)
    assert PublicKey.from_pem(public) == PrivateKey.load(tmp_path / "k").public
    assert PublicKey.from_pem(public).pem.encode() == public


def test_an_agent_without_keys_does_not_wait_for_cryptography() -> None:
    seen = "import sys, agent.cli.run; print([name for name in sys.modules if name.startswith('cryptography')])"
    assert subprocess.run([sys.executable, "-c", seen], check=True, capture_output=True, text=True).stdout == "[]\n"
