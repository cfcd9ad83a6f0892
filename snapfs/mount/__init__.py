"""L5 mount: what the kernel sees. Event loop only, except where a module says otherwise."""
