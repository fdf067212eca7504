"""The client of a gallery service, and the messages they exchange."""

from samespace.sdk.gallery.client import GalleryClient
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.wire import Admission, GalleryHealth, SearchHit

__all__ = ["Admission", "GalleryClient", "GalleryHealth", "RetryPolicy", "SearchHit"]
