"""What this project itself asks of the model, beside the suite of samespace."""

import io

import numpy as np
from PIL import Image


def test_our_decoder_gives_the_embeddings_that_the_gallery_expects(samespace_embedder, samespace_probes, samespace_check):
    """Our service decodes pictures itself and hands arrays to the model."""
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in samespace_probes.images]
    tensors = samespace_embedder.preprocess.batch(pictures)
    samespace_check(samespace_embedder.embed_tensors(tensors), tensors)


def test_a_picture_finds_its_own_kind(samespace_report):
    """Right at rank 1 at least half as often as the cloud model is: the least that our users would notice."""
    retrieval = samespace_report().retrieval
    assert retrieval.recall[1].device.value >= 0.5 * retrieval.cloud_recall[1].value
