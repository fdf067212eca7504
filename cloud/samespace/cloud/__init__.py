"""What needs a data centre: models, compatibility losses, co-training, image sets, adapters, and the gallery.

Nothing is imported here: a gallery service needs no torch, and training needs no database. Look into
:mod:`samespace.cloud.training`, :mod:`samespace.cloud.losses`, :mod:`samespace.cloud.data` and :mod:`samespace.cloud.gallery`.
"""
