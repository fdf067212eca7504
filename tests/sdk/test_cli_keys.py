"""``samespace keys``, through the command line itself."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from samespace.sdk.cli import main
from samespace.sdk.signing import PublicKey, SigningKey, TrustStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("new", ...)``: exit code, standard output and standard error of ``samespace keys new ...``."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["keys", *arguments])
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return call


def test_new_makes_a_pair_and_trusts_it(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("new")
    assert code == 0
    private, public = tmp_path / "config" / "keys" / "default.pem", tmp_path / "config" / "keys" / "default.pub.pem"
    key = SigningKey.load()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert PublicKey.load(public) == key.public
    assert TrustStore.default().find(key.public) is not None
    for text in (key.key_id, str(private), str(public), "trusted here"):
        assert text in out
    assert "PRIVATE KEY" not in out


def test_new_with_a_name_and_without_trust(run: Run) -> None:
    code, out, _ = run("new", "release", "--no-trust", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["name"] == "release"
    assert result["trusted"] is False
    assert SigningKey.load(Path(result["private"])).key_id == result["key_id"]
    assert TrustStore.default().list() == ()


def test_new_never_overwrites(run: Run, tmp_path: Path) -> None:
    run("new")
    before = {path: path.read_bytes() for path in (tmp_path / "config").rglob("*.pem")}
    code, out, err = run("new")
    assert (code, out) == (1, "")
    assert "default.pem: a key is already there" in err.replace("\n", " ")
    assert {path: path.read_bytes() for path in (tmp_path / "config").rglob("*.pem")} == before


def test_new_is_all_or_nothing(run: Run, tmp_path: Path) -> None:
    # The name is taken in the trust store by somebody else's key.
    TrustStore.default().add(SigningKey.new().public, "default")
    code, _, err = run("new")
    assert code == 1
    assert "belongs to the trusted key" in err
    assert not (tmp_path / "config" / "keys").exists()
    # The folder for private keys cannot be made.
    (tmp_path / "config" / "keys").write_text("in the way")
    code, _, err = run("new", "other")
    assert code == 1
    assert [trusted.name for trusted in TrustStore.default().list()] == ["default"]


def test_trust_list_and_untrust(run: Run, tmp_path: Path) -> None:
    key = SigningKey.new()
    (tmp_path / "phone-team.pub.pem").write_bytes(key.public.to_pem())
    assert json.loads(run("list", "--json")[1]) == []
    assert "no key is trusted" in run("list")[1]
    assert run("trust", str(tmp_path / "phone-team.pub.pem"))[1] == f"trusted: {key.key_id} (phone-team)\n"
    assert json.loads(run("list", "--json")[1]) == [{"key_id": key.key_id, "name": "phone-team"}]
    assert run("list")[1] == f"{key.key_id}  phone-team\n"
    again = run("trust", str(tmp_path / "phone-team.pub.pem"), "--name", "phones", "--json")
    assert json.loads(again[1]) == {"key_id": key.key_id, "name": "phones"}
    assert json.loads(run("untrust", key.key_id, "--json")[1]) == {"key_id": key.key_id, "name": "phones"}
    assert json.loads(run("list", "--json")[1]) == []
    code, _, err = run("untrust", key.key_id)
    assert code == 1
    assert "no trusted key has the id" in err


def test_a_private_key_is_not_trusted(run: Run, tmp_path: Path) -> None:
    SigningKey.new().save(tmp_path / "secret.pem")
    code, out, err = run("trust", str(tmp_path / "secret.pem"))
    assert (code, out) == (1, "")
    assert "keep it to yourself" in err.replace("\n", " ")
    assert TrustStore.default().list() == ()


@pytest.mark.parametrize("arguments", [("trust", "missing.pem"), ("new", "../escape"), ("untrust", "zz")])
def test_mistakes_are_one_line_and_exit_1(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["new", "trust", "list", "untrust"])
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: samespace keys {command}" in out
