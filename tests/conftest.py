"""What all tests share: a configuration folder of their own, and no telemetry."""

import os
import tempfile

# Before any test imports a runtime or reads the user's keys: tests never touch the user's own configuration.
os.environ["SAMESPACE_CONFIG_DIR"] = tempfile.mkdtemp(prefix="samespace-test-config-")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
