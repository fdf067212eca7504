"""The client of a gallery service, and the messages they exchange."""

from samespace.sdk.gallery.async_client import AsyncGalleryClient
from samespace.sdk.gallery.client import GalleryClient, NewItem
from samespace.sdk.gallery.connection import GalleryWarning
from samespace.sdk.gallery.disk import DiskFileError
from samespace.sdk.gallery.local import AsyncLocalGallery, LocalGallery, Synced
from samespace.sdk.gallery.offline import AsyncOfflineQueue, Flushed, OfflineQueue
from samespace.sdk.gallery.operations import Page
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.wire import Admission, GalleryHealth, SearchHit

__all__ = [
    "Admission",
    "AsyncGalleryClient",
    "AsyncLocalGallery",
    "AsyncOfflineQueue",
    "DiskFileError",
    "Flushed",
    "GalleryClient",
    "GalleryHealth",
    "GalleryWarning",
    "LocalGallery",
    "NewItem",
    "OfflineQueue",
    "Page",
    "RetryPolicy",
    "SearchHit",
    "Synced",
]
