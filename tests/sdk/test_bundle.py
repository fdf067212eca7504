"""Bundles: what is written can be read, whatever was touched is refused, and no parser sees a byte of it before."""

import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from samespace.sdk import bundle as bundle_module
from samespace.sdk.bundle import Bundle, Seal, artifact_id, verify_seal, write_bundle
from samespace.sdk.errors import BundleError, ConfigError, FormatVersionError, IntegrityError, SignatureError
from samespace.sdk.identity import ModelRecord, SpaceRecord, canonical_json, digest
from samespace.sdk.manifest import FORMAT_VERSION, MAX_BYTES, Artifact, Manifest, TensorSpec, is_plain_path
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.signing import SigningKey, TrustStore

SIZE, DIM = 8, 4
MODEL = ModelRecord(
    name="phone",
    role="edge",
    family="residual",
    arguments={"dim": DIM, "image_size": SIZE},
    dim=DIM,
    preprocess=Preprocess(size=SIZE),
    weights_sha256=digest(b"weights"),
)
SPACE = SpaceRecord(name="emoji", founder_model_id="m-" + "ab" * 16, dim=DIM)
#: Everything a refusal can be; a refusal that is an accident (KeyError, zlib.error, ...) fails the test.
REFUSED = (IntegrityError, SignatureError, BundleError)


@dataclass(frozen=True)
class World:
    """A bundle as a folder and as a zip, its signer, and who trusts whom."""

    folder: Path
    zip: Path
    key: SigningKey
    trust: TrustStore
    contents: Mapping[str, bytes]

    def open(self, path: Path | None = None, **options: Any) -> Bundle:
        return Bundle.open(path or self.folder, trust=self.trust, **options)

    def write(self, path: Path, **changes: Any) -> Manifest:
        return write_bundle(path, **{**self.arguments, **changes})

    @property
    def arguments(self) -> dict[str, Any]:
        package = {
            "Manifest.json": b"{}",
            "Data/com.apple.CoreML/model.mlmodel": b"model",
            "Data/weights/weight.bin": bytes(300),
        }
        image = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(image, "PNG")
        return {
            "model": MODEL,
            "space": SPACE,
            "artifacts": [
                entry("onnx", "artifacts/model.fp32.onnx", {"": self.contents["artifacts/model.fp32.onnx"]}),
                entry("coreml", "artifacts/model.mlpackage", package),
            ],
            "files": {
                "probes/images/000.png": image.getvalue(),
                "probes/reference.safetensors": safetensors.numpy.save({"model": np.eye(4, dtype=np.float32)}),
                "evidence.json": b"[]",
                "empty.txt": b"",
            },
            "gates": {"fp32": {"worst_cosine": 0.99999}},
            "signer": self.key,
        }


def entry(form: str, path: str, files: dict[str, bytes], precision: str = "fp32") -> tuple[Artifact, dict[str, bytes]]:
    fields = {
        "path": path,
        "format": form,
        "precision": precision,
        "artifact_id": artifact_id(files),
        "input": TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
        "output": "embedding",
        "recipe": {"exporter": "test"},
        "min_runtime": "any",
    }
    return Artifact.model_validate(fields), files


def tiny_onnx() -> bytes:
    """A real ONNX file: mean colour times a fixed matrix, L2-normalised."""
    weights = np.random.default_rng(3).normal(size=(3, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("LpNormalization", ["product"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("bundles")
    key, trust = SigningKey.new(), TrustStore(base / "trusted")
    trust.add(key.public, "exporter")
    contents = {"artifacts/model.fp32.onnx": tiny_onnx()}
    made = World(base / "phone.samespace", base / "phone.samespace.zip", key, trust, contents)
    made.write(made.folder)
    made.write(made.zip)
    for path in sorted(made.folder.rglob("*")):
        if path.is_file():
            contents[path.relative_to(made.folder).as_posix()] = path.read_bytes()
    return made


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Path:
    """A copy of the folder that the test may spoil."""
    return Path(shutil.copytree(world.folder, tmp_path / "copy.samespace"))


@contextmanager
def parsers_recorded() -> Iterator[list[str]]:
    """Names of the parsers of artifacts, probes and manifests that run inside the block."""
    import onnxruntime

    calls: list[str] = []

    def recorded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", recorded("onnxruntime", onnxruntime.InferenceSession))
        patch.setattr(safetensors.numpy, "load", recorded("safetensors", safetensors.numpy.load))
        patch.setattr(Image, "open", recorded("pillow", Image.open))
        patch.setattr(bundle_module, "LoadedArtifact", recorded("handed out", bundle_module.LoadedArtifact))
        yield calls


def assert_refused(
    world: World, path: Path, kinds: tuple[type[Exception], ...] = REFUSED, match: str | None = None, **options: Any
) -> str:
    with parsers_recorded() as calls, pytest.raises(kinds, match=match) as caught:
        world.open(path, **options)
    assert type(caught.value) in (*REFUSED, FormatVersionError)
    assert calls == []
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


# --- good bundles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_what_was_written_is_read(world: World, form: str) -> None:
    bundle = world.open(getattr(world, form))
    assert bundle.manifest.model == MODEL
    assert bundle.manifest.space == SPACE
    assert bundle.signer == world.key.key_id
    assert bundle.trusted
    given = world.arguments
    assert bundle.artifacts == tuple(artifact for artifact, _ in given["artifacts"])
    for artifact, files in given["artifacts"]:
        loaded = bundle.artifact(artifact.name)
        assert loaded.files == files
        assert artifact_id(loaded.files) == artifact.artifact_id
        assert (loaded.size, loaded.dim) == (SIZE, DIM)
    for name, data in given["files"].items():
        assert bundle.read(name) == data
    assert bundle.files_below("probes") == {name: data for name, data in given["files"].items() if name.startswith("probes/")}
    assert bundle.files_below("probes/") == bundle.files_below("probes")
    assert bundle.files_below("prob") == {}


def test_the_recorder_sees_a_good_bundle_run(world: World) -> None:
    # Without this, "no parser ran" could mean that the recorder is blind.
    from samespace.sdk.runtimes.onnx import OnnxRuntime

    with parsers_recorded() as calls:
        bundle = world.open()
        assert calls == []
        with OnnxRuntime(bundle.artifact("onnx")) as runtime:
            rows = runtime.run(np.full((3, SIZE, SIZE, 3), 200, np.uint8))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert calls == ["handed out", "onnxruntime"]


def test_artifacts_are_found_by_name_path_and_format(world: World, tmp_path: Path) -> None:
    data = world.contents["artifacts/model.fp32.onnx"]
    artifacts = [
        entry("onnx", "artifacts/a.onnx", {"": data}),
        entry("onnx", "artifacts/b.onnx", {"": data + b"b"}, "int8"),
        entry("tflite", "artifacts/c.tflite", {"": b"c"}),
        entry("onnx", "artifacts/d.onnx", {"": data + b"d"}, "int8"),
    ]
    world.write(tmp_path / "x", artifacts=artifacts)
    bundle = world.open(tmp_path / "x")
    assert bundle.artifact("onnx-fp32").single_file == data
    assert bundle.artifact("tflite").single_file == b"c"
    assert bundle.artifact("artifacts/d.onnx").single_file == data + b"d"
    for name, problem in (("onnx", "does not say which"), ("onnx-int8", "does not say which"), ("coreml", "is no artifact")):
        with pytest.raises(ConfigError, match=problem) as caught:
            bundle.artifact(name)
        assert all(artifact.path in str(caught.value) for artifact, _ in artifacts)


def test_an_unlisted_file_is_not_read(world: World) -> None:
    for name in ("nothing.txt", "manifest.json", "../trusted", "/etc/passwd"):
        with pytest.raises(BundleError, match="has no file"):
            world.open().read(name)


def test_a_zip_made_by_another_tool_is_read(world: World, tmp_path: Path) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "other"), "zip", world.folder))  # with entries for folders
    assert world.open(path).files_below("artifacts") == world.open().files_below("artifacts")


def test_the_same_content_gives_the_same_zip(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samespace.sdk.bundle_writer.utc_now", lambda: "2026-01-01T00:00:00+00:00")
    for name in ("a.zip", "b.zip"):
        world.write(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_link_to_a_bundle_is_followed_once(world: World, tmp_path: Path) -> None:
    link = tmp_path / "current.samespace"
    link.symlink_to(world.folder)
    bundle = world.open(link)
    link.unlink()
    link.symlink_to(tmp_path)
    assert bundle.read("evidence.json") == b"[]"


def test_the_default_trust_store_is_the_users(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(SignatureError):
        Bundle.open(world.folder)
    TrustStore.default().add(world.key.public, "exporter")
    assert Bundle.open(str(world.folder)).trusted


# --- one byte ---------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_byte_of_any_file_changed_is_refused(world: World, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name, content in world.contents.items() if content]))
    content = bytearray(world.contents[name])
    content[data.draw(st.integers(0, len(content) - 1), label="offset")] ^= data.draw(st.integers(1, 255), label="flipped bits")
    with replaced(world.folder / name, bytes(content)):
        assert_refused(world, world.folder, (IntegrityError, SignatureError, BundleError))
    world.open()


@pytest.mark.parametrize("name", ["manifest.json", "signature.json"])
def test_each_byte_of_the_two_files_that_no_digest_covers(world: World, name: str) -> None:
    content = world.contents[name]
    for offset in range(len(content)):
        changed = content[:offset] + bytes([content[offset] ^ (1 << offset % 8)]) + content[offset + 1 :]
        files = {**world.contents, name: changed}
        with pytest.raises(REFUSED):
            verify_seal(Seal(files["manifest.json"], files["signature.json"]), world.folder, trust=world.trust)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_shorter_or_longer_file_is_refused(world: World, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(world.contents)))
    content = world.contents[name]
    cut = data.draw(st.integers(0, len(content)), label="kept")
    tail = data.draw(st.binary(max_size=3), label="appended")
    if content[:cut] + tail != content:
        with replaced(world.folder / name, content[:cut] + tail):
            assert_refused(world, world.folder)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_a_zip_is_refused_or_changes_nothing(
    world: World, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # A zip has bytes of its own (dates, permissions) that say nothing about the content.
    content = bytearray(world.zip.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), label="offset")] ^= data.draw(st.integers(1, 255), label="flipped bits")
    path = tmp_path_factory.getbasetemp() / "flipped.zip"
    path.write_bytes(content)
    try:
        bundle = world.open(path)
    except REFUSED:
        return
    assert bundle.manifest == world.open(world.zip).manifest
    for entry in bundle.manifest.files:
        assert bundle.read(entry.path) == world.contents[entry.path]


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


# --- which files ------------------------------------------------------------------------------------


def test_any_missing_file_is_refused(world: World, copy: Path) -> None:
    for name, content in world.contents.items():
        (copy / name).unlink()
        assert_refused(world, copy)
        (copy / name).write_bytes(content)
    world.open(copy)


@settings(max_examples=40, deadline=None)
@given(
    folder=st.sampled_from(["", "artifacts", "artifacts/model.mlpackage/Data", "probes/images", "new", "a/b/c"]),
    name=st.sampled_from([".DS_Store", "model.pkl", "Manifest.json", "manifest.json.bak", "001.png", "ünï", "a\nb", "\udcff"]),
    content=st.binary(max_size=5),
)
def test_any_extra_file_is_refused(world: World, folder: str, name: str, content: bytes) -> None:
    path = world.folder / folder / name
    new = next((parent for parent in reversed(path.parents) if not parent.exists()), None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        assert "not listed" in assert_refused(world, world.folder, (IntegrityError,))
    finally:
        path.unlink()
        if new is not None:
            shutil.rmtree(new)


def test_an_extra_empty_folder_is_refused(world: World, copy: Path) -> None:
    (copy / "artifacts" / "empty").mkdir()
    assert_refused(world, copy, (IntegrityError,), match="not listed")


def test_any_file_behind_a_symbolic_link_is_refused(world: World, copy: Path, tmp_path: Path) -> None:
    for name, content in world.contents.items():
        for target in (tmp_path / "elsewhere", copy / name):
            (copy / name).rename(tmp_path / "elsewhere")
            (copy / name).symlink_to(target)  # to the very same bytes; to itself
            assert_refused(world, copy, (IntegrityError,), match="symbolic link")
            (copy / name).unlink()
            (copy / name).write_bytes(content)
    world.open(copy)


def test_a_folder_behind_a_symbolic_link_is_refused(world: World, copy: Path, tmp_path: Path) -> None:
    (copy / "probes").rename(tmp_path / "probes")
    (copy / "probes").symlink_to(tmp_path / "probes")
    assert_refused(world, copy, (IntegrityError,), match="symbolic link")


def test_any_file_that_is_hard_linked_elsewhere_is_refused(world: World, copy: Path, tmp_path: Path) -> None:
    for name in world.contents:
        os.link(copy / name, tmp_path / "elsewhere")
        assert_refused(world, copy, (IntegrityError,), match="hard-linked")
        (tmp_path / "elsewhere").unlink()
    world.open(copy)


@pytest.mark.parametrize("name", ["evidence.json", "manifest.json", "signature.json", "artifacts/model.fp32.onnx"])
def test_pipes_sockets_and_folders_in_place_of_a_file_are_refused(world: World, copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)  # opening it would wait for a writer for ever
    assert_refused(world, copy, (IntegrityError,), match="pipe, socket or device")
    (copy / name).unlink()
    here = Path.cwd()
    os.chdir((copy / name).parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind((copy / name).name)
    finally:
        os.chdir(here)
    assert_refused(world, copy, (IntegrityError,), match="pipe, socket or device")
    (copy / name).unlink()
    (copy / name).mkdir()
    assert_refused(world, copy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such bundle"),
        (lambda path: path.mkdir(), "has no manifest.json"),
        (lambda path: path.write_bytes(b""), "not a bundle folder, and not a zip"),
        (lambda path: path.write_bytes(b"some text"), "not a bundle folder, and not a zip"),
        (os.mkfifo, "neither a folder nor a zip"),
        (lambda path: path.symlink_to(path), "no such bundle"),
    ],
    ids=["missing", "empty folder", "empty file", "text", "pipe", "link to itself"],
)
def test_paths_that_are_no_bundle(world: World, tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "phone.samespace"
    make(path)
    assert_refused(world, path, match=message)


# --- manifests that lie, signed by a trusted key ----------------------------------------------------


def sign(world: World, folder: Path, manifest: bytes, key: SigningKey | None = None) -> None:
    """Put ``manifest`` into the bundle with a signature that fits."""
    key = key or world.key
    (folder / "manifest.json").write_bytes(manifest)
    fields = {
        "algorithm": "ed25519",
        "key_id": key.key_id,
        "public_key": key.public.raw.hex(),
        "signature": key.sign(manifest).hex(),
    }
    (folder / "signature.json").write_bytes(canonical_json(fields))


def edited(world: World, change: Callable[[dict[str, Any]], None]) -> bytes:
    content = json.loads(world.contents["manifest.json"])
    change(content)
    return json.dumps(content).encode()


ESCAPES = [
    "../evidence.json",
    "/etc/passwd",
    "artifacts/../../x",
    "artifacts\\x",
    "C:/x",
    "c:x",
    "./evidence.json",
    "artifacts//x",
    "artifacts/",
    "",
    ".hidden",
    "~/x",
    "a\0b",
    "a\nb",
    "ünï",
    "a b",
    "x.",
    "-rf",
    "a" * 256,
]


@settings(max_examples=300)
@given(path=st.text(alphabet="ab./\\\\:~-_ +\0", max_size=8) | st.text(max_size=8))
def test_a_plain_path_names_one_place_below_the_folder_on_every_system(path: str) -> None:
    if is_plain_path(path):
        for kind in (PurePosixPath, PureWindowsPath):
            parts = kind(path).parts
            assert "/".join(parts) == path
            assert not {"", ".", ".."} & set(parts)
            assert not kind(path).is_absolute()
            assert not kind(path).drive
        assert unicodedata.normalize("NFD", path) == unicodedata.normalize("NFC", path) == path


@pytest.mark.parametrize("path", ESCAPES, ids=repr)
def test_escaping_paths_in_the_manifest_are_refused(world: World, copy: Path, path: str) -> None:
    def escape(content: dict[str, Any]) -> None:
        content["files"][-1]["path"] = path

    sign(world, copy, edited(world, escape))
    assert_refused(world, copy, (IntegrityError,), match="not a plain relative path")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].append(m["files"][0]), "listed twice"),
        (lambda m: m["files"].append({**m["files"][0], "path": m["files"][0]["path"].upper()}), "by case only"),
        (lambda m: m["files"].append({**m["files"][0], "path": "manifest.json"}), "reserved name"),
        (lambda m: m["files"].append({**m["files"][0], "path": "Signature.json"}), "reserved name"),
        (lambda m: m["files"].append({**m["files"][0], "path": "evidence.json/x"}), "as the folder of another"),
        (lambda m: m["files"][0].update(size=-1), "greater than or equal"),
        (lambda m: [entry.update(size=MAX_BYTES) for entry in m["files"][:2]], "at most"),
        (lambda m: m["files"][0].update(sha256="0" * 63), "match pattern"),
        (lambda m: m["files"][0].update(mode=0o777), "Extra inputs"),
        (lambda m: m["artifacts"][0].update(artifact_id="0" * 64), "artifact_id does not fit"),
        (lambda m: m["artifacts"][1].update(path="artifacts/model.mlpack"), "not among the files"),
        (lambda m: m["artifacts"][0].update(path="../model.onnx"), "not a plain relative path"),
        (lambda m: m.update(model_id="m-" + "0" * 32), "does not fit the model record"),
        (lambda m: m.update(space_id="s-x"), "does not fit the space record"),
        (lambda m: m["model"]["arguments"].update(dim=5), "does not fit the model record"),
        (lambda m: m["space"].update(dim=5), "does not fit the space record"),
        (lambda m: m.update(run="curl"), "Extra inputs"),
        (lambda m: m.pop("model"), "Field required"),
        (lambda m: m.update(format_version=0), "greater than or equal"),
        (lambda m: m.update(format_version="1"), "no format_version"),
        (lambda m: m.update(format_version=True), "no format_version"),
        (lambda m: m.pop("format_version"), "no format_version"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    world: World, copy: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    sign(world, copy, edited(world, change))
    assert_refused(world, copy, match=message)


def test_a_model_wider_than_its_space_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="4 dimensions, its space has 3"):
        world.write(tmp_path / "x", space=SpaceRecord(name="emoji", founder_model_id="m-" + "ab" * 16, dim=3))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"format_version": 1, "format_version": 1}',
        b'{"format_version": NaN}',
        b"9" * 5000,
    ],
    ids=["empty", "null", "list", "cut", "no utf-8", "deep", "key twice", "nan", "long number"],
)
def test_manifests_that_are_no_json_are_refused(world: World, copy: Path, manifest: bytes) -> None:
    sign(world, copy, manifest)
    assert_refused(world, copy, (BundleError,))


def test_a_huge_manifest_is_refused_unread(world: World, copy: Path) -> None:
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(5 << 30)  # sparse
    tracemalloc.start()
    assert_refused(world, copy, (IntegrityError,), match="more than the")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_a_newer_format_says_to_upgrade(world: World, copy: Path, allow_unsigned: bool) -> None:
    # Of the newer format nothing is known but its version.
    sign(world, copy, json.dumps({"format_version": FORMAT_VERSION + 1, "files": "somewhere else", "tensors": []}).encode())
    assert_refused(world, copy, (FormatVersionError,), match="upgrade samespace", allow_unsigned=allow_unsigned)


def test_a_newer_format_is_believed_only_with_its_signature(world: World, copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION + 1}))
    assert_refused(world, copy, (SignatureError,), match="does not fit manifest.json")


# --- signatures -------------------------------------------------------------------------------------


def test_the_signature_is_checked_before_the_manifest_is_parsed(
    world: World, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Any] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda data, **options: parsed.append(data) or loads(data, **options))
    (copy / "manifest.json").write_bytes(b"[" * 100_000)
    assert_refused(world, copy, (SignatureError,), match="does not fit")
    assert parsed == [world.contents["signature.json"].decode()]


def test_an_unknown_key_is_refused_unless_allowed(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stranger = SigningKey.new()
    world.write(tmp_path / "x", signer=stranger)
    message = assert_refused(world, tmp_path / "x", (SignatureError,), match=stranger.key_id)
    assert "samespace keys trust" in message
    bundle = world.open(tmp_path / "x", allow_unsigned=True)
    assert bundle.signer == stranger.key_id
    assert not bundle.trusted
    assert f"unknown key {stranger.key_id}" in caplog.text


def test_an_unsigned_bundle_is_refused_unless_allowed(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world.write(tmp_path / "x", signer=None)
    assert not (tmp_path / "x" / "signature.json").exists()
    assert "--allow-unsigned" in assert_refused(world, tmp_path / "x", (SignatureError,), match="nobody signed")
    bundle = world.open(tmp_path / "x", allow_unsigned=True)
    assert bundle.signer is None
    assert not bundle.trusted
    assert "unsigned bundle" in caplog.text


def test_a_key_that_is_trusted_no_longer_is_unknown(world: World, tmp_path: Path) -> None:
    trust = TrustStore(tmp_path / "trusted")
    trust.add(world.key.public, "exporter")
    assert Bundle.open(world.folder, trust=trust).trusted
    trust.remove(world.key.key_id)
    with pytest.raises(SignatureError, match="not trusted here"):
        Bundle.open(world.folder, trust=trust)


def test_a_removed_signature_makes_the_bundle_unsigned_not_trusted(world: World, copy: Path) -> None:
    (copy / "signature.json").unlink()
    assert_refused(world, copy, (SignatureError,), match="nobody signed")
    assert not world.open(copy, allow_unsigned=True).trusted


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_listed_is_checked_without_a_signature_too(
    world: World, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "unsigned.samespace"
    if not folder.exists():
        world.write(folder, signer=None)
    name = data.draw(st.sampled_from([name for name, content in world.contents.items() if content and "/" in name]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with replaced(folder / name, bytes(content)):
        assert_refused(world, folder, (IntegrityError,), match="was changed", allow_unsigned=True)


def signature_with(world: World, **changes: str) -> bytes:
    return canonical_json({**json.loads(world.contents["signature.json"]), **changes})


def test_signatures_that_do_not_fit_are_refused_even_when_unsigned_is_allowed(world: World, copy: Path) -> None:
    stranger = SigningKey.new()
    manifest = world.contents["manifest.json"]
    fields = json.loads(world.contents["signature.json"])
    wrong = {
        "a stranger's signature under the trusted key's name": signature_with(world, signature=stranger.sign(manifest).hex()),
        "the trusted key's id with a stranger's key": signature_with(
            world, public_key=stranger.public.raw.hex(), signature=stranger.sign(manifest).hex()
        ),
        "a stranger's id with the trusted key": signature_with(world, key_id=stranger.key_id),
        "a signature over something else": signature_with(world, signature=world.key.sign(manifest + b" ").hex()),
        "all zeros": signature_with(world, signature="0" * 128),
        "a key of small order": signature_with(
            world, public_key="01" + "00" * 31, key_id=digest(bytes.fromhex("01" + "00" * 31))[:16], signature="01" + "00" * 63
        ),
        "another algorithm": signature_with(world, algorithm="none"),
        "a field too many": signature_with(world, comment="trust me"),
        "upper case": signature_with(world, signature=fields["signature"].upper()),
        "spaces": json.dumps(fields).encode(),
        "a line break at the end": world.contents["signature.json"] + b"\n",
        "a list": b"[]",
        "nothing": b"",
        "no text": b"\xff\xfe",
        "numbers": canonical_json({**fields, "signature": 5}),
        "too long": world.contents["signature.json"] + b" " * 5000,
    }
    for name, content in wrong.items():
        (copy / "signature.json").write_bytes(content)
        for allow_unsigned in (False, True):
            with pytest.raises(REFUSED) as caught:
                world.open(copy, allow_unsigned=allow_unsigned)
            assert copy.name in str(caught.value), name


# --- zips -------------------------------------------------------------------------------------------

Entries = list[tuple[zipfile.ZipInfo | str, bytes]]


def write_zip(path: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def good_entries(world: World) -> Entries:
    return [(name, data) for name, data in world.contents.items()]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a\\b", "C:x", "artifacts/../x", "./x", "a//b", ".hidden", "ünï", "a/"])
def test_escaping_and_extra_names_in_a_zip_are_refused(world: World, tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", [*good_entries(world), (name, b"")])
    assert_refused(world, path, (IntegrityError,))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["evidence.json", "manifest.json", "artifacts/model.fp32.onnx"])
def test_duplicate_zip_entries_are_refused(world: World, tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "x.zip", [(name, b"other"), *good_entries(world)])
    assert_refused(world, path, (IntegrityError,), match="there twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFDIR])
def test_links_and_special_files_in_a_zip_are_refused(world: World, tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("evidence.json")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    entries = [(info if name == "evidence.json" else name, data) for name, data in good_entries(world)]
    assert_refused(world, write_zip(tmp_path / "x.zip", entries), (IntegrityError,), match="link or a special file")


def test_missing_and_changed_zip_entries_are_refused(world: World, tmp_path: Path) -> None:
    for victim in world.contents:
        path = write_zip(tmp_path / "x.zip", [entry for entry in good_entries(world) if entry[0] != victim])
        assert_refused(world, path)
        path = write_zip(tmp_path / "x.zip", [(name, data + b"!" * (name == victim)) for name, data in world.contents.items()])
        assert_refused(world, path)


def test_an_unusual_compression_is_refused(world: World, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        for name, data in world.contents.items():
            archive.writestr(name, data)
    assert_refused(world, tmp_path / "x.zip", (IntegrityError,), match="unusual")


def test_a_zip_with_the_folder_around_it_says_how_to_zip(world: World, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", [(f"phone/{name}", data) for name, data in world.contents.items()])
    assert_refused(world, path, (IntegrityError,), match="zip the content of 'phone'")


def test_a_zip_with_a_comment_or_in_the_zip64_format_is_refused(world: World, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", good_entries(world))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"
    assert_refused(world, path, (IntegrityError,), match="with a comment")
    content = world.zip.read_bytes()
    locator = b"PK\6\7" + bytes(16)
    path.write_bytes(content[:-22] + locator + content[-22:])
    assert_refused(world, path, (IntegrityError,), match="Zip64")
    path.write_bytes(content[:-12] + b"\xff\xff" + content[-10:])
    assert_refused(world, path, (IntegrityError,))


def lie_about_size(path: Path, name: str, size: int) -> None:
    """Let the central directory of a zip claim that ``name`` inflates to ``size`` bytes."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))
    content[at + 24 : at + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


def test_a_zip_bomb_takes_no_more_than_the_manifest_says(world: World, tmp_path: Path) -> None:
    bomb = bytes(200 << 20)
    path = write_zip(
        tmp_path / "x.zip", [(name, bomb if name == "evidence.json" else data) for name, data in world.contents.items()]
    )
    assert path.stat().st_size < 1 << 20
    del bomb
    tracemalloc.start()
    assert_refused(world, path, (IntegrityError,), match="the manifest says 2")
    lie_about_size(path, "evidence.json", 2)
    assert_refused(world, path, (IntegrityError,))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_a_bomb_with_an_unsigned_manifest_that_fits_is_read_in_pieces(world: World, tmp_path: Path) -> None:
    bomb = bytes(100 << 20)
    world.write(tmp_path / "x.zip", files={"evidence.json": bomb}, signer=None)
    del bomb
    tracemalloc.start()
    world.open(tmp_path / "x.zip", allow_unsigned=True)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


# --- changed after it was opened --------------------------------------------------------------------


def test_what_is_changed_after_opening_is_not_handed_out(world: World, copy: Path, tmp_path: Path) -> None:
    bundle = world.open(copy)
    content = bytearray((copy / "artifacts/model.fp32.onnx").read_bytes())
    content[5] ^= 1
    (copy / "artifacts/model.fp32.onnx").write_bytes(content)
    with parsers_recorded() as calls, pytest.raises(IntegrityError, match="was changed"):
        bundle.artifact("onnx")
    assert calls == []
    (copy / "evidence.json").unlink()
    (copy / "evidence.json").symlink_to(tmp_path)
    with pytest.raises(IntegrityError):
        bundle.read("evidence.json")
    (copy / "manifest.json").write_bytes(b"not needed any more")
    assert bundle.read("probes/images/000.png") == world.contents["probes/images/000.png"]


def test_a_zip_that_is_replaced_after_opening_is_not_handed_out(world: World, tmp_path: Path) -> None:
    path = Path(shutil.copy(world.zip, tmp_path / "x.zip"))
    bundle = world.open(path)
    write_zip(path, [(name, b"{}" if name == "evidence.json" else data) for name, data in world.contents.items()])
    with pytest.raises(IntegrityError, match="was changed"):
        bundle.read("evidence.json")
    path.write_bytes(b"no zip")
    with pytest.raises(IntegrityError):
        bundle.read("empty.txt")
    path.unlink()
    with pytest.raises(IntegrityError):
        bundle.read("empty.txt")


# --- nothing heavy ----------------------------------------------------------------------------------


def test_refusing_a_bundle_loads_no_runtime(world: World, copy: Path) -> None:
    content = bytearray((copy / "artifacts/model.fp32.onnx").read_bytes())
    content[0] ^= 1
    (copy / "artifacts/model.fp32.onnx").write_bytes(content)
    script = """
import sys
from pathlib import Path
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import IntegrityError
from samespace.sdk.signing import TrustStore
try:
    Bundle.open(sys.argv[1], trust=TrustStore(Path(sys.argv[2])))
except IntegrityError:
    heavy = {"onnx", "onnxruntime", "coremltools", "ai_edge_litert", "tflite_runtime", "tensorflow", "torch"}
    print("refused with", sorted(heavy & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, str(copy), str(world.trust.folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "refused with []"


# --- writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.samespace", "new.samespace.zip"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_fails_at_any_step_leaves_things_as_they_were(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, existing: bool
) -> None:
    path = tmp_path / name
    if existing:
        world.write(path, files={"old.txt": b"old"})
    before = snapshot(tmp_path)
    fsync, steps = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal steps
        if not steps:
            raise OSError(28, "No space left on device")
        steps -= 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for allowed in range(100):
        steps, error = allowed, None
        try:
            world.write(path)
        except BundleError as refusal:
            error = str(refusal)
        if error is None:
            break
        assert "No space left on device" in error
        assert snapshot(tmp_path) == before
    assert allowed >= (1 if name.endswith(".zip") else len(world.contents))
    monkeypatch.undo()
    assert [found.name for found in tmp_path.iterdir()] == [name]
    assert world.open(path).read("evidence.json") == b"[]"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_interruption_by_the_keyboard_leaves_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.write(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
from samespace.sdk.bundle import Bundle, write_bundle
from samespace.sdk.identity import ModelRecord, SpaceRecord

path = Path(sys.argv[1])
model, space = ModelRecord.model_validate_json(sys.argv[2]), SpaceRecord.model_validate_json(sys.argv[3])

def write(version):
    files = {"version.txt": version, "a/b.txt": b"b", "a/c/d.txt": b"d"}
    write_bundle(path, model=model, space=space, artifacts=[], files=files, signer=None)

def die_after(calls):
    left = [calls]
    def counted(original):
        def call(*args, **kwargs):
            if not left[0]:
                os._exit(9)  # as by SIGKILL: no handler, no clean-up
            left[0] -= 1
            return original(*args, **kwargs)
        return call
    for name in ("fsync", "replace", "link", "unlink", "mkdir", "open", "rmdir", "close"):
        setattr(os, name, counted(getattr(os, name)))

write(b"old")
for calls in range(200):
    child = os.fork()
    if not child:
        die_after(calls)
        write(b"new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(Bundle.open(path, allow_unsigned=True).read("version.txt").decode())
    if os.waitstatus_to_exitcode(status) == 0:
        print("finished")
        break
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize("name", ["new.samespace", "new.samespace.zip"])
def test_a_process_killed_at_any_step_leaves_the_old_bundle_or_the_new(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / name), MODEL.model_dump_json(), SPACE.model_dump_json()]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *versions, last = result.stdout.split()
    assert last == "finished"
    assert set(versions) == {"old", "new"}
    assert versions == sorted(versions, reverse=True)
    assert len(versions) > 5


def test_a_new_bundle_replaces_the_whole_old_one(world: World, tmp_path: Path) -> None:
    for name in ("x", "x.zip"):
        world.write(tmp_path / name, files={"old.txt": b"old"})
        world.write(tmp_path / name)
        bundle = world.open(tmp_path / name)
        assert bundle.read("evidence.json") == b"[]"
        with pytest.raises(BundleError):
            bundle.read("old.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.zip"]


@pytest.mark.parametrize("name", ["x", "x.zip"])
def test_what_is_no_bundle_is_not_replaced(world: World, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not replaced"):
        world.write(path)
    assert (path / "thesis.tex").read_text() == "years of work"
    shutil.rmtree(path)
    path.write_text("years of work")
    with pytest.raises(ConfigError, match="not replaced"):
        world.write(path)
    assert path.read_text() == "years of work"


def test_an_empty_folder_becomes_a_bundle(world: World, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    world.write(tmp_path / "x")
    world.open(tmp_path / "x")


def test_a_path_that_cannot_be_written_is_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("x", "x.zip"):
        with pytest.raises(BundleError, match="cannot be written"):
            world.write(tmp_path / "file" / name)


@pytest.mark.parametrize("name", [*ESCAPES, "manifest.json", "signature.json", "EVIDENCE.json"], ids=repr)
def test_names_that_could_not_be_read_are_not_written(world: World, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError):
        world.write(tmp_path / "x", files={"evidence.json": b"[]", name: b""})
    assert list(tmp_path.iterdir()) == []


def test_a_file_given_twice_and_a_wrong_artifact_id_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="given twice"):
        world.write(tmp_path / "x", files={"artifacts/model.fp32.onnx": b""})
    artifact, _ = entry("onnx", "artifacts/m.onnx", {"": b"one"})
    with pytest.raises(BundleError, match="artifact_id does not fit"):
        world.write(tmp_path / "x", artifacts=[(artifact, {"": b"other"})])
    with pytest.raises(BundleError, match="finite"):
        world.write(tmp_path / "x", gates={"fp32": {"worst_cosine": float("nan")}})
    assert list(tmp_path.iterdir()) == []


def test_artifact_ids() -> None:
    assert artifact_id({"": b"bytes"}) == digest(b"bytes")
    package = {"b/c": b"2", "a": b"1"}
    listed = [["a", 1, digest(b"1")], ["b/c", 1, digest(b"2")]]
    assert artifact_id(package) == digest(canonical_json(listed))
    assert artifact_id(dict(reversed(package.items()))) == artifact_id(package)
    changes = [{"b/c": b"2"}, {**package, "a": b"3"}, {"b/c": b"2", "aa": b"1"}, {**package, "d": b""}]
    assert len({artifact_id(files) for files in (package, *changes)}) == 5


def test_written_files_obey_the_umask(world: World, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        world.write(tmp_path / "x")
        world.write(tmp_path / "x.zip")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {0o750, 0o640}
