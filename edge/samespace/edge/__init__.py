"""What runs small: :mod:`samespace.edge.models` (torch) and :mod:`samespace.edge.devices` (never torch).

Nothing is imported here, so that the device layer stays free of torch.
"""
