"""L6 service: the daemon of a mounted store, its control socket, and the way to it. Imports nothing."""
