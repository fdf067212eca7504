"""Where vectors are kept and searched; :mod:`~samespace.cloud.gallery.indexes.registry` names them all."""
