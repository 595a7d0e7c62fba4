"""What a client computes: models, local training and evaluation in PyTorch, and a scalar task without it.

Importing this package imports no torch. ``batches``, ``sizes``, ``facts`` and ``quadratic`` stay free of it, so that
``plan`` knows step counts and sizes without it.
"""
