"""The client of a gallery service, and the messages they exchange."""

from samespace.sdk.gallery.async_client import AsyncGalleryClient
from samespace.sdk.gallery.client import GalleryClient, NewItem
from samespace.sdk.gallery.operations import Page
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.wire import Admission, GalleryHealth, SearchHit

__all__ = ["Admission", "AsyncGalleryClient", "GalleryClient", "GalleryHealth", "NewItem", "Page", "RetryPolicy", "SearchHit"]
