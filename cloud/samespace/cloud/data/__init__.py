"""Training data: image sets behind one small protocol, their splits, their cached pixels, and augmentation."""

from samespace.cloud.data.augment import Augment, augment_batch
from samespace.cloud.data.cache import cache_folder, cached_tensors
from samespace.cloud.data.config import DataConfig, EmojiConfig, FolderConfig, ManifestConfig, Size, SplitConfig, chosen_size
from samespace.cloud.data.images import ArrayImages, ImageSet, Item
from samespace.cloud.data.kinds import open_dataset
from samespace.cloud.data.resize import resize_batch
from samespace.cloud.data.splits import Split, make_split

__all__ = [
    "ArrayImages",
    "Augment",
    "DataConfig",
    "EmojiConfig",
    "FolderConfig",
    "ImageSet",
    "Item",
    "ManifestConfig",
    "Size",
    "Split",
    "SplitConfig",
    "augment_batch",
    "cache_folder",
    "cached_tensors",
    "chosen_size",
    "make_split",
    "open_dataset",
    "resize_batch",
]
