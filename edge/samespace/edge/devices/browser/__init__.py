"""A real browser as a device: Chromium without a window, onnxruntime-web, LiteRT.js, and our preprocessing in JavaScript.

``page/preprocess.js`` with its two neighbours is for web apps, too.
"""

from samespace.edge.devices.browser.device import BrowserDevice
from samespace.edge.devices.browser.install import BrowserSet, browser_set

__all__ = ["BrowserDevice", "BrowserSet", "browser_set"]
