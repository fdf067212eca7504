"""The browser as a device, without one: what is served to whom, what is installed, what is said where something is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from samespace.edge.devices.browser.chromium import VARIABLE, find_chromium
from samespace.edge.devices.browser.device import BrowserDevice
from samespace.edge.devices.browser.install import browser_set
from samespace.edge.devices.browser.packages import PACKAGES, NpmPackage, fetch, unpack
from samespace.edge.devices.browser.server import PageServer
from samespace.edge.devices.installs import load_install
from samespace.edge.devices.profile import Browser, load_profile, parse_profile
from samespace.sdk.errors import ConfigError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "run.js").write_text("1;")
    (tmp_path / "secret.txt").write_text("not for the page")
    server = PageServer({"page": tmp_path / "page"})
    yield server
    server.close()


def tarball(path: Path, names: tuple[str, ...]) -> str:
    """Write one; its integrity."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"bytes"))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_the_page_is_isolated_from_other_origins(server: PageServer) -> None:
    for path in ("", "page/run.js", "page/nothing.js"):
        headers = httpx.get(server.address + path).headers
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert httpx.get(server.address + "page/run.js").headers["Content-Type"] == "text/javascript"


def test_only_who_knows_the_secret_is_served_and_only_what_is_meant(server: PageServer) -> None:
    server.job(b"model", [b"picture"], {"embeddings": 8})
    root = server.address.replace(server.secret, "guess")
    assert httpx.get(server.address + "job/image/0").content == b"picture"
    assert httpx.get(root + "job/image/0").status_code == 404
    assert httpx.post(root + "job/embeddings", content=b"12345678").status_code == 413
    assert httpx.get(server.address + "job/image/1").status_code == 404
    assert httpx.get(server.address + "page/..%2fsecret.txt").status_code == 404
    address = httpx.URL(server.address)
    request = httpx.Request("GET", address.copy_with(raw_path=address.raw_path + b"page/../secret.txt"))
    with httpx.Client() as client:
        assert client.send(request).status_code == 404


def test_no_more_is_taken_from_the_page_than_was_asked_for(server: PageServer) -> None:
    server.job(b"model", [], {"embeddings": 8})
    assert httpx.post(server.address + "job/embeddings", content=b"123456789").status_code == 413
    assert httpx.post(server.address + "job/else", content=b"1").status_code == 413
    assert server.received == {}
    assert httpx.post(server.address + "job/embeddings", content=b"12345678").status_code == 204
    assert server.received == {"embeddings": b"12345678"}


def test_a_package_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = NpmPackage("@some/thing", "1.2.3", "", ("dist/index.js",))
    package = replace(package, integrity=tarball(tmp_path / "some-thing-1.2.3.tgz", package.files))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    unpack(package, fetch(package, tmp_path), tmp_path / "new")
    assert (tmp_path / "new" / "@some" / "thing" / "dist" / "index.js").read_bytes() == b"bytes"
    (tmp_path / package.tarball).write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="needs the program 'npm'"):
        fetch(package, tmp_path)


def test_a_package_without_a_file_is_refused(tmp_path: Path) -> None:
    package = NpmPackage("thing", "1.0.0", "", ("dist/index.js",))
    tarball(tmp_path / package.tarball, ("dist/other.js",))
    with pytest.raises(ConfigError, match=r"has no file dist/index\.js"):
        unpack(package, tmp_path / package.tarball, tmp_path / "new")


def test_packages_are_pinned_by_version_and_hash() -> None:
    for package in PACKAGES:
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64
        assert package.version.replace(".", "").isdigit()


def test_a_missing_browser_is_named_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="chromium-headless-shell"):
        load_install("browser").install()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=VARIABLE):
        find_chromium()


@pytest.mark.parametrize("name", ["browser", "browser-webgpu"])
def test_a_device_that_is_not_installed_says_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="samespace devices install browser"):
        BrowserDevice(load_profile(name))
    assert browser_set().details() == {}
    assert browser_set().remove() is False


def test_profiles_are_of_the_kind_and_strict() -> None:
    profile = load_profile("browser")
    assert isinstance(profile.runs, Browser)
    assert profile.runs.accelerator == "wasm"
    text = 'name = "x"\ndescription = ""\nproves = ""\ncannot_prove = ""\n[runs]\nkind = "browser"\nruntimes = ["onnx"]\n'
    with pytest.raises(ConfigError, match="accelerator"):
        parse_profile(text + 'accelerator = "webgl"\n', "x.toml", "x")
    with pytest.raises(ConfigError, match="kind 'host', not 'browser'"):
        BrowserDevice(load_profile("host"))
