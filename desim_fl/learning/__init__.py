"""What a client computes: models, local training and evaluation in PyTorch, and tasks in closed form without it.

Importing this package imports no torch. ``batches``, ``sizes``, ``facts`` and the tasks in closed form (``quadratic``,
``convex``) stay free of it, so that
``plan`` knows step counts and sizes without it.
"""
