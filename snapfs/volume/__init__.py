"""L4 volume: POSIX without FUSE: heads, snapshots, buffers, moments and commits."""
