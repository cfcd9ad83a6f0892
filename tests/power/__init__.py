"""Real power cuts: a store on a filesystem that is shut down without flushing in the middle of work."""
