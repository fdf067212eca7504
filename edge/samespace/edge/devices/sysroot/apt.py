"""Debian's packages for another architecture, by the host's apt and its sources, in an apt root of our own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from samespace.edge.devices.sysroot.architectures import SUITE
from samespace.edge.devices.sysroot.commands import run
from samespace.sdk.errors import ConfigError

__all__ = ["AptRoot", "describe_deb"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SECONDS = 600.0
#: As sources call them: each of them is a source of all.
_RELEASES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable")
#: Keeps the host's state and locks out of it. apt reads it after the host's own settings, so that those (a proxy) hold.
_SETTINGS = """
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "{root}/parts";
Dir::Etc::preferences "{root}/preferences";
Dir::Etc::preferencesparts "{root}/parts";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; "{host}"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "60";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class AptRoot:
    """An apt root in ``folder``; what was downloaded there stays, so that an interrupted download goes on.

    Args:
        folder: of the root.
        architecture: Debian's name.
        security: use the host's source of security updates, too.
        own: the host's architecture from all these sources, too, not from the backports only.

    Raises:
        ConfigError: the host has no apt, or no source of Debian.
    """

    def __init__(self, folder: Path, architecture: str, *, security: bool, own: bool = False) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise ConfigError("building a sysroot needs apt-get and dpkg-deb: use a Debian host or container")
        self.folder = folder
        self.host = run(["dpkg", "--print-architecture"], "asking for this host's architecture", seconds=30).strip()
        main, updates = _sites()
        these = f"{architecture},{self.host}" if own and self.host != architecture else architecture
        sources = [f"deb [signed-by={_KEYRING} arch={these}] {main} {SUITE} main"]
        sources.append(f"deb [signed-by={_KEYRING} arch={self.host}] {main} {SUITE}-backports main")
        if security and updates:
            sources.append(f"deb [signed-by={_KEYRING} arch={these}] {updates} {SUITE}-security main")
        for part in ("parts", "state/lists/partial", "cache/archives/partial", "debs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").write_text("")
        (folder / "sources.list").write_text("\n".join(sources) + "\n")
        settings = _SETTINGS.format(root=folder, architecture=architecture, host=self.host)
        (folder / "apt.conf").write_text(settings)

    def update(self) -> None:
        """Fetch the indexes.

        Raises:
            ConfigError: it failed, e.g. without a network.
        """
        self._apt("update", "-o", "APT::Update::Error-Mode=any", what="fetching Debian's package lists")

    def download(self, packages: Sequence[str]) -> list[Path]:
        """Download packages, each ``NAME:ARCHITECTURE`` or ``NAME:ARCHITECTURE/RELEASE``, verified by apt.

        Returns:
            Their files, sorted; older ones of the same folder are removed.

        Raises:
            ConfigError: it failed, or a package does not exist.
        """
        folder = self.folder / "debs"
        wanted = self._wanted(packages)
        for there in folder.glob("*.deb"):
            if wanted.get(there.name) != _sha256(there):
                there.unlink()  # of an earlier time, or cut short
        self._apt("download", *packages, what="downloading Debian's packages")
        found = {path.name: path for path in sorted(folder.glob("*.deb"))}
        wrong = [name for name, sha256 in wanted.items() if name not in found or _sha256(found[name]) != sha256]
        if wrong or set(found) != set(wanted):
            raise ConfigError(f"{len(wrong)} of {len(wanted)} packages were not downloaded, e.g. {wrong[:1]}; try again")
        return list(found.values())

    def real(self, package: str) -> str:
        """The package that one without files of its own stands for (a kernel's): the first that it depends on.

        Raises:
            ConfigError: there is no such package, or it depends on none.
        """
        variables = {"APT_CONFIG": str(self.folder / "apt.conf")}
        command = ["apt-cache", "show", "--no-all-versions", package]
        printed = run(command, f"looking up {package}", seconds=_SECONDS, variables=variables)
        match = re.search(r"^Depends: ([a-z0-9][a-z0-9+.-]+)", printed, re.MULTILINE)
        if match is None:
            raise ConfigError(f"Debian's {package} depends on no package; run 'apt-get update', try again")
        return match[1]

    def _wanted(self, packages: Sequence[str]) -> dict[str, str]:
        """File names of packages, and their SHA-256."""
        # apt-get leaves out what lies in the folder where it runs: it runs in an empty one.
        printed = self._apt("--print-uris", "download", *packages, what="looking up Debian's packages", folder="parts")
        fields = [line.rpartition("' ")[2].split() for line in printed.splitlines() if line.startswith("'")]
        found = {name: sha256.removeprefix("SHA256:") for name, _, sha256 in fields if sha256.startswith("SHA256:")}
        if len(found) != len(packages):
            raise ConfigError(f"apt-get names {len(found)} files for {len(packages)} packages; run 'apt-get update', try again")
        return found

    def _apt(self, *arguments: str, what: str, folder: str = "debs") -> str:
        command = ["apt-get", "-qq", *arguments]
        variables = {"APT_CONFIG": str(self.folder / "apt.conf")}
        return run(command, what, seconds=_SECONDS, folder=self.folder / folder, variables=variables)


def describe_deb(path: Path) -> dict[str, str]:
    """Name, architecture, version and SHA-256 of a package file.

    Raises:
        ConfigError: it is no package.
    """
    form = "${Package} ${Architecture} ${Version}"
    printed = run(["dpkg-deb", "-W", f"--showformat={form}", str(path)], f"reading {path.name}", seconds=60)
    name, architecture, version = printed.split()
    return {"name": name, "architecture": architecture, "version": version, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sites() -> tuple[str, str]:
    """Addresses of Debian and of its security updates (empty when there is none), as the host's apt has them."""
    main, updates = os.environ.get("SAMESPACE_DEBIAN_MIRROR", ""), ""
    for site, release in _listed() or _configured():
        if release in _RELEASES:
            main = main or site
        elif release.removesuffix("-security") in _RELEASES:
            updates = updates or site
    if not main:
        raise ConfigError(
            "this host's apt has no source of Debian: run 'apt-get update', use a Debian host or container, or name a mirror "
            "in SAMESPACE_DEBIAN_MIRROR"
        )
    if not _KEYRING.exists():
        raise ConfigError(f"{_KEYRING} is missing: Debian's packages cannot be verified; install debian-archive-keyring")
    return main, updates


def _listed() -> list[tuple[str, str]]:
    """(address, release) of Debian's sources whose lists the host has fetched."""
    form = "$(ORIGIN)|$(SITE)|$(RELEASE)|$(COMPONENT)"
    printed = run(["apt-get", "indextargets", "--format", form], "asking apt for its sources", seconds=60)
    rows = [line.split("|") for line in printed.splitlines()]
    return [(row[1], row[2]) for row in rows if len(row) == 4 and row[0] == "Debian" and row[3] == "main"]


def _configured() -> list[tuple[str, str]]:
    """(address, release) of all sources, those that end like Debian's first: a fresh container has fetched no lists."""
    printed = run(["apt-get", "update", "--print-uris"], "asking apt for its sources", seconds=60)
    found = re.findall(r"^'(\S+?)/+dists/(\S+?)/InRelease'", printed, re.MULTILINE)
    return sorted(found, key=lambda source: not source[0].endswith(("/debian", "/debian-security")))
