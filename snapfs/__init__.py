"""snapfs: a FUSE snapshot filesystem whose first duty is never to delete something still needed."""

__version__ = '0.1.0'
