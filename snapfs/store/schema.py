"""L2 schema: the catalog's tables. The text is the documentation; SQLite keeps it in the file (`.schema`
shows it).

A catalog whose schema differs from this text in anything is Corrupt: triggers and views in a file that
somebody else wrote would run with our rights. Pure constants.

Conventions: *_ns are nanoseconds since 1970; `who` is a user's name as the caller gave it; names are BLOBs
because file names need not be UTF-8. A column whose name is or ends in `root`, `id` or `ids` holds chunk ids,
and no other does: whoever looks for mentions of a chunk reads exactly these (volume.root, snapshot.root,
request.root, request_part.ids, canary.root, chunk.id, quarantine.id, freed.id, damage.id). `volume.number`
and `snapshot.number` are view numbers.

Version 2 added the tables config, approval, canary and audit_head, the columns of batch that tell how far it
is, incident.batch, request.owner_user and owner_group, and the kinds of request that the collector makes.
Version 3 added the tables damage and scrubbed. migrate.py brings older catalogs here."""

APPLICATION_ID = 0x536E6170  # 'Snap'
SCHEMA_VERSION = 3

SETTINGS = """
CREATE TABLE settings (
  -- One row per value of the store that changes. Keys and meanings:
  --   epoch             number of commits so far
  --   journal_sequence  journal records up to here are contained in the current roots
  --   next_view         next view number (volumes and snapshots share the counter), never reused
  --   next_volume       next stable volume number, never reused
  --   next_request, next_pack, next_incident, next_batch   likewise
  --   trusted_ns        time that certainly has passed while the store was there: graces are measured with it
  --   trusted_wall_ns   time of day when trusted_ns was last written; 0 = never
  --   trusted_boot_ns   time since the machine was started, then
  --   unclean_opens     how often an open found 'clean' at 0
  --   clean             1 after a clean close, 0 while open: an open that finds 0 recovers
  key TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID
"""

VOLUME = """
CREATE TABLE volume (
  -- A writable file tree. The row holds the committed root of its head; newer changes are in memory and
  -- journal.
  volume INTEGER PRIMARY KEY,         -- stable number: journal, snapshots and requests name the volume by it
  number INTEGER NOT NULL UNIQUE,     -- view number; a rollback gives the volume a new one
  name BLOB NOT NULL UNIQUE,
  root BLOB,                          -- id of the top node; NULL = empty tree
  root_items INTEGER NOT NULL,        -- items below the root
  root_refs INTEGER NOT NULL,         -- references below the root
  next_ino INTEGER NOT NULL,          -- inode numbers from here on were never used
  created_ns INTEGER NOT NULL,
  origin INTEGER,                     -- view number of the snapshot it was cloned from, or NULL
  damaged_ns INTEGER                  -- when a read first found a chunk missing or wrong, or NULL
) STRICT
"""

SNAPSHOT = """
CREATE TABLE snapshot (
  -- A name for a root. The root never changes (P6).
  number INTEGER PRIMARY KEY,         -- view number
  volume INTEGER NOT NULL REFERENCES volume,
  name BLOB NOT NULL,
  root BLOB,
  root_items INTEGER NOT NULL,
  root_refs INTEGER NOT NULL,
  next_ino INTEGER NOT NULL,
  epoch INTEGER NOT NULL,             -- the commit whose root this is
  created_ns INTEGER NOT NULL,
  who TEXT NOT NULL,
  damaged_ns INTEGER,
  UNIQUE (volume, name)
) STRICT
"""

HOLD = """
CREATE TABLE hold (
  -- A persistent, named reason not to delete a snapshot.
  snapshot INTEGER NOT NULL REFERENCES snapshot,
  name BLOB NOT NULL,
  who TEXT NOT NULL,
  why TEXT NOT NULL,
  created_ns INTEGER NOT NULL,
  until_ns INTEGER,                   -- it stops holding then; NULL = until released
  PRIMARY KEY (snapshot, name)
) STRICT, WITHOUT ROWID
"""

REQUEST = """
CREATE TABLE request (
  -- A durable wish to delete. Only what a request reaches can ever be freed (P2). A request that is in no
  -- batch is a root like any other: it may still be taken back. Everything needed for that is in the row.
  -- Kinds: a person deleted a snapshot or a volume; a commit dropped chunks; a batch returned what something
  -- kept at the time; a person asked for what a crash leaked.
  number INTEGER PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('snapshot', 'volume', 'dropped', 'returned', 'leaked')),
  volume INTEGER NOT NULL,            -- stable number, 0 = none; the volume itself may be gone
  volume_name BLOB NOT NULL,          -- as it was then
  name BLOB NOT NULL,                 -- of the snapshot; empty for the other kinds
  view INTEGER NOT NULL,              -- view number of the snapshot or volume; 0 for the other kinds
  root BLOB,                          -- NULL for empty trees and kinds whose ids are in request_part
  root_items INTEGER NOT NULL,
  root_refs INTEGER NOT NULL,
  next_ino INTEGER NOT NULL,
  root_epoch INTEGER NOT NULL,        -- the commit whose root this is
  created_ns INTEGER NOT NULL,        -- when the snapshot or volume was made
  created_by TEXT NOT NULL,           -- who took the snapshot
  origin INTEGER,                     -- of the volume
  requested_ns INTEGER NOT NULL,
  who TEXT NOT NULL,                  -- who wants it gone
  epoch INTEGER NOT NULL,             -- epoch of the store at the request
  bytes INTEGER,                      -- estimate of what will come back; NULL = unknown
  batch INTEGER REFERENCES batch,     -- the batch that works on it, or NULL
  owner_user INTEGER,                 -- uid of the deleted tree's top directory; its owner may take it back:
  owner_group INTEGER                 -- once condemned it is not read any more; NULL = unknown; its gid
) STRICT
"""

REQUEST_PART = """
CREATE TABLE request_part (
  -- The ids of requests of the kinds dropped, returned and leaked. Rows are slices of at most 1,000 ids.
  request INTEGER NOT NULL REFERENCES request,
  part INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('chunks', 'subtrees')),  -- single chunks, or top nodes of whole subtrees
  ids BLOB NOT NULL,                  -- ids of 32 bytes, back to back
  PRIMARY KEY (request, part)
) STRICT, WITHOUT ROWID
"""

BATCH = """
CREATE TABLE batch (
  -- The unit the collector moves. PLANNED: its rows are on their way into quarantine; a crash ends it.
  -- QUARANTINED: it rests until its grace is over. CONFIRMED: recount 2 found no mention and the receipt is
  -- durable; from here it goes forwards only. FREED and RESTORED are its two ends. One batch moves at a time,
  -- several may rest.
  number INTEGER PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('PLANNED', 'QUARANTINED', 'CONFIRMED', 'FREED', 'RESTORED')),
  class TEXT NOT NULL CHECK (class IN ('kept', 'dropped')),  -- which grace it has
  horizon INTEGER NOT NULL,           -- epoch recount 1 started from
  digest BLOB NOT NULL,               -- of the plan file in batches/
  chunks INTEGER NOT NULL,            -- condemned
  bytes INTEGER NOT NULL,             -- stored bytes of these, record headers included
  grace_ns INTEGER NOT NULL,          -- how long it rests, in trusted time
  planned_ns INTEGER NOT NULL,
  quarantined_ns INTEGER,
  quarantined_trusted_ns INTEGER,     -- trusted time then
  quarantined_epoch INTEGER,
  released_by TEXT,                   -- who approved its digest to be freed before the grace is over, or NULL
  confirmed_ns INTEGER,               -- recount 2 found no mention
  receipt BLOB,                       -- digest of the receipt file in batches/, from CONFIRMED on
  freed INTEGER NOT NULL,             -- condemned chunks that are in the table freed so far, or gone
  ended_ns INTEGER,                   -- freed or restored
  reason TEXT                         -- why it was restored
) STRICT
"""

INCIDENT = """
CREATE TABLE incident (
  -- A latch that fell. It stays in force until a person acknowledges it; a restart clears nothing.
  number INTEGER PRIMARY KEY,
  scope TEXT NOT NULL CHECK (scope IN ('store', 'collector')),  -- all writing stops, or only deletion
  opened_ns INTEGER NOT NULL,
  reason TEXT NOT NULL,
  acknowledged_ns INTEGER,            -- NULL = in force
  acknowledged_by TEXT,
  batch INTEGER                       -- the batch it is about, or NULL
) STRICT
"""

PACK = """
CREATE TABLE pack (
  -- A file of records. Numbers stand for names in locations, because they are short.
  pack INTEGER PRIMARY KEY,
  name BLOB NOT NULL UNIQUE,          -- 16 random bytes; the file is called by their hexadecimal digits
  kind INTEGER NOT NULL,              -- of all its records: 1 data, 2 node
  state TEXT NOT NULL CHECK (state IN ('open', 'sealed', 'retired')),
  bytes INTEGER NOT NULL,             -- durable bytes: header and records, and the footer when sealed
  records INTEGER NOT NULL            -- durable records
) STRICT
"""

CHUNK = """
CREATE TABLE chunk (
  -- The index: where the chunk is that readers get and writers share. All bytes it names are durable (P4).
  id BLOB PRIMARY KEY,
  pack INTEGER NOT NULL,              -- pack.pack; no foreign key, it would cost a look-up per row
  offset INTEGER NOT NULL,            -- of the record's header in the pack
  stored INTEGER NOT NULL,            -- payload bytes in the pack
  plain INTEGER NOT NULL,             -- bytes after decompression
  codec INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  epoch INTEGER NOT NULL              -- of the commit that inserted the row
) STRICT, WITHOUT ROWID
"""

QUARANTINE = """
CREATE TABLE quarantine (
  -- Condemned chunks in grace: readable (that is an alarm), invisible to writers, who store a fresh copy
  -- instead.
  id BLOB NOT NULL,
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  plain INTEGER NOT NULL,
  codec INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  batch INTEGER NOT NULL,
  PRIMARY KEY (id, pack, offset)
) STRICT, WITHOUT ROWID
"""

FREED = """
CREATE TABLE freed (
  -- Chunks with a receipt whose pack may still stand. Rows go when the pack has gone. Invisible to writers; a
  -- read that finds its chunk only here is served, and an alarm.
  id BLOB NOT NULL,
  pack INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  stored INTEGER NOT NULL,
  plain INTEGER NOT NULL,
  codec INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  batch INTEGER NOT NULL,
  PRIMARY KEY (id, pack, offset)
) STRICT, WITHOUT ROWID
"""

RECEIPT = """
CREATE TABLE receipt (
  -- Proof that a check was made: certificates of batches, verifications of the store. The text is in the
  -- audit log.
  number INTEGER PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('certificate', 'verification')),
  batch INTEGER REFERENCES batch,
  made_ns INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  passed INTEGER NOT NULL,            -- 1, or 0: something was found
  digest BLOB NOT NULL                -- of the file or audit line with the details
) STRICT
"""

CONFIG = """
CREATE TABLE config (
  -- What a person has set with `snapfs config`. A key that is absent has its default.
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

APPROVAL = """
CREATE TABLE approval (
  -- A person's word for exactly one plan. It adds to the machine's checks and replaces none.
  digest BLOB NOT NULL,               -- of the plan
  what TEXT NOT NULL CHECK (what IN ('limits', 'grace')),  -- it may exceed the limits, or be freed early
  who TEXT NOT NULL,
  given_ns INTEGER NOT NULL,
  until_trusted_ns INTEGER NOT NULL,  -- it counts no longer then
  PRIMARY KEY (digest, what, who)
) STRICT, WITHOUT ROWID
"""

CANARY = """
CREATE TABLE canary (
  -- The trip wire: a hidden root whose chunks nothing else references and nobody deletes. A recount that does
  -- not find them alive is blind.
  number INTEGER PRIMARY KEY,
  root BLOB NOT NULL,
  root_items INTEGER NOT NULL,
  root_refs INTEGER NOT NULL,
  made_ns INTEGER NOT NULL
) STRICT
"""

AUDIT_HEAD = """
CREATE TABLE audit_head (
  -- What the audit log must contain at least; written with every transaction. One row, or none: no line yet.
  one INTEGER PRIMARY KEY CHECK (one = 1),
  end_bytes INTEGER NOT NULL,         -- the last line known ends here
  end_lines INTEGER NOT NULL,         -- its number
  end_hash TEXT NOT NULL,             -- its hash, hexadecimal
  base_bytes INTEGER NOT NULL,        -- the chain counts from here: 0, or where it began again after a break
  base_lines INTEGER NOT NULL,
  base_hash TEXT NOT NULL
) STRICT
"""

DAMAGE = """
CREATE TABLE damage (
  -- Chunks whose bytes were found missing or wrong. Writers share none of them: the same content is stored
  -- afresh. A row says what is lost and keeps nothing; it goes when the index has a good copy again, or when
  -- the chunk is freed.
  id BLOB PRIMARY KEY,
  found_ns INTEGER NOT NULL,          -- when that was first seen
  found_by TEXT NOT NULL CHECK (found_by IN ('read', 'scrub', 'recovery')),
  reason TEXT NOT NULL
) STRICT, WITHOUT ROWID
"""

SCRUBBED = """
CREATE TABLE scrubbed (
  -- Which part of the store was read and verified, and when. Slots cut the space of ids into 4,096 parts, by
  -- an id's first 12 bits: what a snapshot holds lies in all of them alike. What was committed up to `epoch`
  -- was verified; so a snapshot is verified in the slots whose epoch is not before its own.
  slot INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 4095),
  epoch INTEGER NOT NULL,             -- of the store when the slot's chunks were listed
  verified_ns INTEGER NOT NULL,
  chunks INTEGER NOT NULL,            -- read then
  bytes INTEGER NOT NULL,             -- stored bytes of these, record headers included
  bad INTEGER NOT NULL                -- of these, found missing or wrong
) STRICT
"""

TABLES = {
    'settings': SETTINGS,
    'volume': VOLUME,
    'snapshot': SNAPSHOT,
    'hold': HOLD,
    'batch': BATCH,
    'request': REQUEST,
    'request_part': REQUEST_PART,
    'incident': INCIDENT,
    'pack': PACK,
    'chunk': CHUNK,
    'quarantine': QUARANTINE,
    'freed': FREED,
    'receipt': RECEIPT,
    'config': CONFIG,
    'approval': APPROVAL,
    'canary': CANARY,
    'audit_head': AUDIT_HEAD,
    'damage': DAMAGE,
    'scrubbed': SCRUBBED,
}

# Tables that do not grow with what is stored: a look at their pages takes a millisecond.
SMALL = tuple(name for name in TABLES if name not in ('chunk', 'quarantine', 'freed', 'request_part'))

SETTINGS_INITIAL = {
    'epoch': 0,
    'journal_sequence': 0,
    'next_view': 1,
    'next_volume': 1,
    'next_request': 1,
    'next_pack': 1,
    'next_incident': 1,
    'next_batch': 1,
    'trusted_ns': 0,
    'trusted_wall_ns': 0,
    'trusted_boot_ns': 0,
    'unclean_opens': 0,
    'clean': 1,
}
