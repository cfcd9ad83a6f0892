"""L2 store: durable writes, packs, catalog, journal, audit log, chunk store. Blocking code. Imports nothing
here."""
