"""Device profiles: what a device is and what checking on it proves, in TOML. Unknown keys are refused."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.errors import ConfigError

__all__ = ["DeviceProfile", "load_profile", "profile_names"]

_FOLDER = files("samespace.edge.devices") / "profiles"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Host(_Part):
    """This machine itself, in this process."""

    kind: Literal["host"]
    runtimes: tuple[str, ...] = Field(default=(), description="names of runtimes, best first; none: all that are installed")


class QemuUser(_Part):
    """A processor that QEMU emulates for one program (user mode), with the runtimes' own wheels for its architecture."""

    kind: Literal["qemu-user"]
    architecture: Literal["arm64", "armhf", "amd64"] = Field(
        description="which sysroot: samespace devices install ARCHITECTURE"
    )
    cpu: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9-]*$", description="QEMU's name of the processor: -cpu")
    runtimes: tuple[str, ...] = Field(min_length=1, description="names of runtimes, best first")
    threads: int = Field(default=1, ge=1, le=64, description="of a runtime, where the check does not say")


class QemuSystem(_Part):
    """A whole 64-bit ARM computer that QEMU emulates, with little memory."""

    kind: Literal["qemu-system"]
    cpu: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9-]*$", description="QEMU's name of the processor: -cpu")
    memory_mb: int = Field(ge=64, le=8192, description="of the computer, its kernel included")
    runtimes: tuple[str, ...] = Field(min_length=1, description="names of runtimes, best first")
    threads: int = Field(default=1, ge=1, le=64, description="of a runtime, where the check does not say")


class Browser(_Part):
    """A Chromium without a window, with onnxruntime-web and LiteRT.js on a page of ours."""

    kind: Literal["browser"]
    accelerator: Literal["wasm", "webgpu"] = Field(description="what computes in the page")
    runtimes: tuple[str, ...] = Field(min_length=1, description="names of runtimes, best first")
    flags: tuple[str, ...] = Field(default=(), description="of Chromium, beside those that every page gets")
    threads: int = Field(default=1, ge=1, le=64, description="of a runtime, where the check does not say")


class Adb(_Part):
    """A 64-bit Android phone that adb lists."""

    kind: Literal["adb"]
    runtimes: tuple[str, ...] = Field(min_length=1, description="names of runtimes, best first")
    threads: int = Field(default=1, ge=1, le=64, description="of a runtime, where the check does not say")


class DeviceProfile(_Part):
    """One file in ``profiles/``."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9-]*$", description="as in --device; the file is called NAME.toml")
    description: str
    runs: Host | QemuUser | QemuSystem | Browser | Adb = Field(discriminator="kind", description="what runs it, and how")
    proves: str
    cannot_prove: str


def profile_names() -> tuple[str, ...]:
    """Names of the profiles that come with samespace."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml")))


def load_profile(name: str) -> DeviceProfile:
    """The profile of that name.

    Raises:
        ConfigError: there is none, or its file is wrong; names the field.
    """
    if name not in profile_names():
        raise ConfigError(f"no device profile is called {name!r}; there are: {', '.join(profile_names())}")
    return parse_profile((_FOLDER / f"{name}.toml").read_text("utf-8"), f"profiles/{name}.toml", name)


def parse_profile(text: str, file: str, name: str) -> DeviceProfile:
    """A profile from TOML.

    Args:
        text: the TOML.
        file: its name, for messages.
        name: that the profile must have.

    Raises:
        ConfigError: not TOML, a missing, unknown or wrong field, or another name.
    """
    try:
        profile = DeviceProfile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{file}: field {'.'.join(map(str, first['loc']))!r}: {first['msg']}") from None
    if profile.name != name:
        raise ConfigError(f"{file}: the profile is named {profile.name!r}; file name and name must agree")
    return profile
