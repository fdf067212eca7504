"""The commands of the guide's sections about devices, run as a reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from samespace.sdk import Bundle, TrustStore
from samespace.sdk.signing import PublicKey

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus" / "bundle-v2"


def run_section(title: str, devices: tuple[str, ...], bundle: Bundle, folder: Path) -> None:
    """Run a section's commands in ``folder`` beside ``phone.samespace``; its check must show these devices, bit for bit."""
    guide = (ROOT / "docs" / "devices.md").read_text()
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", guide, re.MULTILINE | re.DOTALL)
    assert section is not None
    commands = re.findall(r"^samespace .*$", section[1], re.MULTILINE)
    assert {command.split()[1] for command in commands} == {"devices", "check"}
    shutil.copytree(bundle.path, folder / "phone.samespace")
    TrustStore(folder / "config" / "trusted").add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    # The cache is the one that all these tests use: nothing is downloaded again.
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SAMESPACE_CONFIG_DIR": str(folder / "config"),
    }
    for command in commands:
        result = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        said = result.stdout + result.stderr
        assert "Traceback" not in said
        if command.split()[1] == "check":
            # The corpus's model is not trained: it passes no retrieval gate anywhere.
            for device in devices:
                assert re.search(rf"^ort-fp32 +{device} +ort +1\.0000000 ", result.stdout, re.MULTILINE), said
        else:
            assert result.returncode == 0, said
