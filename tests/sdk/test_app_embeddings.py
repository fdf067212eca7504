"""``samespace check --embeddings``: what a real app computed is judged, and a file that cannot be is refused by name."""

import csv
import io
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samespace.sdk.check import AppDevice, Gate, Settings, measure
from samespace.sdk.check.app import probe_names
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError
from samespace.sdk.signing import TrustStore

ROOT = Path(__file__).parents[2]
QUICK = Settings(n_boot=300)


@pytest.fixture(scope="module")
def bundle(toy, tmp_path_factory):
    """The toy, with the fingerprint of the mistake that is planted here, and an int8 artifact beside fp32."""
    probes = toy.probe_set(mistakes={"bgr": toy.embed(swapped(toy), toy.edge)})
    int8 = toy.artifact(toy.graph(toy.edge, noise=0.01), "int8")
    return toy.bundle(tmp_path_factory.mktemp("app") / "toy.samespace", probes=probes, more_artifacts=[int8])


def swapped(toy):
    """The probe images as an app sees them that takes BGR for RGB: by Pillow, not by our code."""
    images = []
    for data in toy.images:
        red, green, blue = Image.open(io.BytesIO(data)).split()
        buffer = io.BytesIO()
        Image.merge("RGB", (blue, green, red)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


@pytest.fixture(scope="module")
def rows(toy):
    return toy.embed(toy.images, toy.edge)


def named(rows):
    return {f"{index:03d}.png": [float(value) for value in row] for index, row in enumerate(rows)}


def write(path, rows, *, names=None):
    """An app's file, written without our code."""
    names = [f"{index:03d}.png" for index in range(len(rows))] if names is None else names
    if path.suffix == ".json":
        path.write_text(json.dumps(dict(zip(names, np.asarray(rows, float).tolist(), strict=True))))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[name, *row] for name, row in zip(names, np.asarray(rows).tolist(), strict=True)])
    else:
        np.savez(path, embeddings=rows, names=np.array(names))
    return path


def judged(bundle, device, artifact="onnx-fp32"):
    report = measure(bundle, artifact, device=device, settings=QUICK)
    verdict = Gate.of(report).judge(report)
    return report, verdict, {finding.check: finding.outcome for finding in verdict.findings}


@pytest.mark.parametrize("name", ["app.json", "app.csv", "app.npz"])
def test_each_format_is_read_in_any_order(bundle, rows, tmp_path, name):
    order = np.random.default_rng(0).permutation(len(rows))
    path = write(tmp_path / name, rows[order], names=[f"{index:03d}.png" for index in order])
    device = AppDevice.from_files(bundle, path)
    assert np.allclose(device.embeddings, rows, atol=1e-7)
    report, verdict, outcomes = judged(bundle, device)
    assert verdict.outcome == "pass", verdict.reasons
    assert "tensor" not in outcomes
    assert report.tensor is None
    assert report.title == "onnx-fp32 in app on app"
    assert report.reproduce == f"samespace check {bundle.path} --artifact onnx-fp32 --embeddings {path}"


def test_rows_without_names_are_in_the_order_of_the_images(bundle, rows, tmp_path):
    (tmp_path / "app.json").write_text(json.dumps(rows.tolist()))
    (tmp_path / "app.csv").write_text("\n".join(",".join(map(str, row)) for row in rows.tolist()))
    np.savez(tmp_path / "app.npz", embeddings=rows)
    for name in ("app.json", "app.csv", "app.npz"):
        assert np.allclose(AppDevice.from_files(bundle, tmp_path / name).embeddings, rows, atol=1e-7)


def test_names_may_have_a_folder_a_heading_or_no_ending(bundle, rows, tmp_path):
    names = [f"probes/images/{index:03d}.png" if index % 2 else f"{index:03d}" for index in range(len(rows))]
    path = write(tmp_path / "app.csv", rows, names=names)
    path.write_text("name," + ",".join(f"v{at}" for at in range(rows.shape[1])) + "\n" + path.read_text())
    assert np.allclose(AppDevice.from_files(bundle, path).embeddings, rows, atol=1e-7)


def test_tensors_are_judged_and_their_mistake_is_named_and_shown(bundle, toy, tmp_path):
    wrong = swapped(toy)
    path = write(tmp_path / "app.json", toy.embed(wrong, toy.edge))
    tensors = toy.preprocess.batch(wrong)
    (tmp_path / "tensors.bin").write_bytes(tensors.tobytes())
    report, verdict, outcomes = judged(bundle, AppDevice.from_files(bundle, path, tmp_path / "tensors.bin", "Pixel 7"))
    assert verdict.exit_code == 1
    assert outcomes["tensor"] == "fail"
    assert report.diagnosis[0].name == "bgr"
    assert report.title == "onnx-fp32 in app on Pixel 7"
    assert {"golden", "device", "difference"} == set(report.cases[0].pictures)
    assert report.reproduce.endswith(f"--embeddings {path} --tensors {tmp_path / 'tensors.bin'} --device 'Pixel 7'")
    # Without tensors the embeddings alone tell.
    report, _, _ = judged(bundle, AppDevice.from_files(bundle, path))
    assert report.diagnosis[0].name == "bgr"
    assert set(report.cases[0].pictures) == {"golden"}


@pytest.mark.parametrize("ending", [".npz", ".npy", ".bin"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_right_tensors_are_exact_in_every_format(bundle, toy, rows, tmp_path, ending, dtype):
    golden = toy.preprocess.batch(toy.images).astype(dtype)
    path = tmp_path / f"tensors{ending}"
    if ending == ".npz":
        order = np.arange(len(golden))[::-1]
        np.savez(path, tensors=golden[order], names=np.array([f"{index:03d}.png" for index in order]))
    elif ending == ".npy":
        np.save(path, golden)
    else:
        path.write_bytes(golden.astype(np.uint8).tobytes())
    report, verdict, outcomes = judged(bundle, AppDevice.from_files(bundle, write(tmp_path / "app.npz", rows), path))
    assert outcomes["tensor"] == "pass"
    assert report.tensor.exact == len(rows)
    assert verdict.outcome == "pass"


def test_floats_that_were_scaled_differ(bundle, toy, rows, tmp_path):
    np.save(tmp_path / "tensors.npy", toy.preprocess.batch(toy.images).astype(np.float32) / 255)
    report, _, outcomes = judged(
        bundle, AppDevice.from_files(bundle, write(tmp_path / "a.npz", rows), tmp_path / "tensors.npy")
    )
    assert outcomes["tensor"] == "fail"
    assert report.tensor.max_difference > 100
    broken = toy.preprocess.batch(toy.images).astype(np.float32)
    broken[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "tensors.npy", broken)
    report, _, _ = judged(bundle, AppDevice.from_files(bundle, tmp_path / "a.npz", tmp_path / "tensors.npy"))
    assert (report.tensor.exact, report.tensor.max_difference) == (len(rows) - 1, 255)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows * np.nan, "holds NaN"),
        (lambda rows: rows * np.float32(np.inf), "holds"),
        (lambda rows: rows * 0, "all zeros"),
        (lambda rows: rows * 3, "L2 normalisation is missing"),
        (lambda rows: rows[:, :5], "shape (64, 5), expected (64, 12)"),
        (lambda rows: (rows * 127).astype(np.int8), "L2 normalisation is missing"),
    ],
)
def test_what_is_no_embedding_fails_and_says_why(bundle, rows, tmp_path, change, reason):
    np.savez(tmp_path / "app.npz", embeddings=change(rows))
    report, verdict, outcomes = judged(bundle, AppDevice.from_files(bundle, tmp_path / "app.npz"))
    assert verdict.exit_code == 1
    assert outcomes["runs"] == "fail"
    assert reason in verdict.reasons[0]
    assert report.embedding is None


def test_null_is_no_number(bundle, rows, tmp_path):
    content = named(rows)
    content["007.png"][2] = None
    (tmp_path / "app.json").write_text(json.dumps(content))
    _, verdict, _ = judged(bundle, AppDevice.from_files(bundle, tmp_path / "app.json"))
    assert "embedding 7 holds NaN" in verdict.reasons[0]


def test_the_artifact_decides_the_gate(bundle, toy, tmp_path):
    noisy = toy.embed(toy.images, toy.edge + 0.02 * toy.stranger)
    device = AppDevice.from_files(bundle, write(tmp_path / "app.npz", noisy))
    assert judged(bundle, device, "onnx-fp32")[2]["cosine"] == "fail"
    assert judged(bundle, device, "onnx-int8")[2]["cosine"] == "pass"


def replaced(name, value):
    def change(content):
        content[name] = value
        return content

    return change


def without(*names):
    return lambda content: {name: row for name, row in content.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("003.png", "005.png"), "2 of 64 probe images are missing: 003.png, 005.png"),
        (replaced("cat.png", [1.0] * 12), "'cat.png' is no probe image of this bundle; they are 000.png to 063.png"),
        (replaced("images/003.png", [1.0] * 12), "'003.png' twice"),
        (replaced("003.png", [1.0] * 3), "003.png has 3 numbers, the first row has 12"),
        (replaced("003.png", "[1.0, 2.0]"), "expected"),
        (replaced("003.png", ["much"] * 12), "003.png holds 'much', which is no number"),
        (lambda content: 7, "expected"),
        (lambda content: list(content.values())[:9], "9 rows for 64 probe images"),
        (lambda content: [], "0 rows for 64 probe images"),
    ],
)
def test_rows_that_are_not_one_of_each_image_are_refused(bundle, rows, tmp_path, change, message):
    (tmp_path / "app.json").write_text(json.dumps(change(named(rows))))
    with pytest.raises(ConfigError, match=r"app\.json") as error:
        AppDevice.from_files(bundle, tmp_path / "app.json")
    assert message in str(error.value)


def truncated(path, rows):
    np.savez_compressed(path, embeddings=rows)
    path.write_bytes(path.read_bytes()[:-200])


def corrupt(path, rows):
    np.savez_compressed(path, embeddings=rows)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "fill", "message"),
    [
        ("app.npz", truncated, "not an .npz file that can be read"),
        ("app.npz", corrupt, "not an .npz file that can be read"),
        ("app.npz", lambda path, rows: path.write_bytes(b"{}"), "not an .npz file that can be read"),
        ("app.npz", lambda path, rows: np.savez(path, vectors=rows), "expected the arrays 'embeddings'"),
        ("app.npz", lambda path, rows: np.savez(path, embeddings=np.array([{}])), "not an .npz file"),
        ("app.npz", lambda path, rows: np.savez(path, embeddings=rows[:, :, None]), "of shape (n, d)"),
        ("app.npz", lambda path, rows: np.savez(path, embeddings=rows.astype(str)), "must be numbers"),
        ("app.npz", lambda path, rows: np.savez(path, embeddings=np.float32(1)), "0 rows for 64"),
        ("app.npz", lambda path, rows: np.savez(path, embeddings=rows, names=["000.png"]), "1 names for 64 rows"),
        ("app.json", lambda path, rows: path.write_text(json.dumps(named(rows))[:-50]), "not JSON that can be read"),
        ("app.json", lambda path, rows: path.write_text('{"000.png": [1], "000.png": [1]}'), "000.png twice"),
        ("app.json", lambda path, rows: path.write_text("[" * 100_000), "not JSON that can be read"),
        ("app.csv", lambda path, rows: path.write_bytes(b"\xff\xfe\x00"), "not CSV that can be read"),
        ("app.csv", lambda path, rows: path.write_text("name,v0\n"), "0 rows for 64"),
        ("app.csv", lambda path, rows: path.write_text(""), "the file is empty"),
        ("app.npz", lambda path, rows: path.write_text(""), "the file is empty"),
        ("app.txt", lambda path, rows: path.write_text("x"), "write .npz or .csv or .json"),
        ("app.npz", lambda path, rows: path.mkdir(), "cannot be read"),
        ("app.npz", lambda path, rows: None, "no such file"),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(bundle, rows, tmp_path, name, fill, message):
    fill(tmp_path / name, rows)
    with pytest.raises(ConfigError, match=name) as error:
        AppDevice.from_files(bundle, tmp_path / name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "fill", "message"),
    [
        ("t.bin", lambda path, golden: path.write_bytes(golden.tobytes()[:-1]), "49151 bytes; 64 images of 16 x 16 pixels"),
        ("t.npy", lambda path, golden: np.save(path, golden.transpose(0, 3, 1, 2)), "channels first"),
        ("t.npy", lambda path, golden: np.save(path, golden[:, :8]), "of shape (n, 16, 16, 3)"),
        ("t.npy", lambda path, golden: path.write_bytes(b"x"), "not an .npy file"),
        ("t.npz", lambda path, golden: np.savez(path, tensors=golden[:9]), "9 rows for 64 probe images"),
        ("t.npz", lambda path, golden: np.savez(path, images=golden), "expected the arrays 'tensors'"),
        ("t.png", lambda path, golden: path.write_bytes(b"x"), "write .npz or .npy or .bin"),
    ],
)
def test_tensors_that_cannot_be_read_are_refused_by_name(bundle, toy, rows, tmp_path, name, fill, message):
    fill(tmp_path / name, toy.preprocess.batch(toy.images))
    with pytest.raises(ConfigError, match=name) as error:
        AppDevice.from_files(bundle, write(tmp_path / "app.npz", rows), tmp_path / name)
    assert message in str(error.value)


def test_the_command_line(bundle, toy, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    TrustStore.default().add(toy.signer.public, "toymaker")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.json", rows)
    write(tmp_path / "bad.csv", toy.embed(swapped(toy), toy.edge))

    def run(arguments):
        with pytest.raises(SystemExit) as end:
            main(["check", *shlex.split(arguments)])
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    path = bundle.path
    code, out, _ = run(f"{path} --artifact onnx-fp32 --embeddings good.json --device 'Pixel 7'")
    assert code == 0
    assert "PASS: onnx-fp32 in app on Pixel 7" in out
    command = next(line for line in out.splitlines() if line.startswith("again with: ")).removeprefix(
        "again with: samespace check "
    )
    assert run(command)[0] == 0
    code, out, _ = run(f"{path} --artifact onnx-fp32 --embeddings bad.csv --json bad.json")
    assert code == 1
    assert "diagnosis: bgr" in out
    assert json.loads((tmp_path / "bad.json").read_text())["checks"][0]["report"]["diagnosis"][0]["name"] == "bgr"
    code, _, err = run(f"{path} --embeddings good.json")
    assert code == 1
    assert "say with --artifact which one the app runs; there is: onnx-fp32, onnx-int8" in err
    assert run(f"{path} --artifact onnx --embeddings good.json")[0] == 1
    for wrong in (f"{path} --tensors x.bin", "--embeddings good.json", f"{path} --embeddings good.json --runtime onnx"):
        assert run(wrong)[0] == 2


def test_the_javascript_of_the_guide_writes_what_is_read(bundle, toy, rows, tmp_path):
    """The app here: it reads the embeddings as raw floats, and writes both files with the code of the guide."""
    node = shutil.which("node")
    assert node, "node is needed to run the JavaScript of the guide: install Node.js"
    golden = toy.preprocess.batch(toy.images)
    (tmp_path / "rows.bin").write_bytes(rows.astype("<f4").tobytes())
    (tmp_path / "golden.bin").write_bytes(golden.tobytes())
    (tmp_path / "app.mjs").write_text(
        f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ embeddingsFile, tensorsFile }} from {json.dumps((ROOT / "examples/check_from_app/embeddings.mjs").as_uri())};
        const raw = readFileSync("rows.bin"), floats = new Float32Array(new Uint8Array(raw).buffer);
        const rows = new Map(), tensors = [], pixels = new Uint8Array(readFileSync("golden.bin"));
        {json.dumps(probe_names(bundle))}.forEach((name, at) => {{
          rows.set(name, floats.subarray(at * {toy.dim}, (at + 1) * {toy.dim}));
          tensors.push(pixels.subarray(at * {golden[0].size}, (at + 1) * {golden[0].size}));
        }});
        writeFileSync("app.json", embeddingsFile(rows));
        writeFileSync("tensors.bin", tensorsFile(tensors));
        """
    )
    subprocess.run([node, "app.mjs"], cwd=tmp_path, check=True)
    device = AppDevice.from_files(bundle, tmp_path / "app.json", tmp_path / "tensors.bin")
    assert np.array_equal(device.embeddings, rows)
    _, verdict, outcomes = judged(bundle, device)
    assert verdict.outcome == "pass"
    assert outcomes["tensor"] == "pass"


@pytest.mark.parametrize(
    ("compiler", "arguments", "file"),
    [("kotlinc", ["-d", "app.jar"], "Embeddings.kt"), ("swiftc", ["-parse"], "Embeddings.swift")],
)
def test_the_phones_code_of_the_guide_compiles(compiler, arguments, file, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed; that the guide shows this file is tested all the same")
    subprocess.run([compiler, ROOT / "examples" / "check_from_app" / file, *arguments], cwd=tmp_path, check=True)
