"""L0 limits: every number of snapfs, with its unit last, and their relations asserted at import.

What comes from disk or from a user is checked against these before memory is spent on it.
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

# --- identities ------------------------------------------------------------------------------------------
ID_BYTES = 32
UUID_BYTES = 16
PACK_NAME_BYTES = 16
INO_ROOT = 1
INO_BITS = 40
INO_MAX = (1 << INO_BITS) - 1
VIEW_BITS = 20  # a view is a volume or a snapshot; numbers are never reused
VIEW_MAX = (1 << VIEW_BITS) - 1

# --- names and values ------------------------------------------------------------------------------------
NAME_BYTES_MAX = 255
SYMLINK_BYTES_MAX = 4095
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 64 * KIB
XATTR_INLINE_BYTES_MAX = 1 * KIB
XATTRS_PER_INODE_MAX = 1024
KEY_SUFFIX_BYTES_MAX = 255
HASH_COLLISIONS_MAX = 64  # names of one directory that may share one 63-bit hash
NLINK_MAX = 1 << 31
FILE_BYTES_MAX = (1 << 60) - 1  # EFBIG above: 1 EiB - 1
VOLUME_NAME_BYTES_MAX = 255
HOLDS_PER_SNAPSHOT_MAX = 64
VOLUMES_MAX = 65536

# --- chunks, records, packs ------------------------------------------------------------------------------
CHUNK_BYTES_MIN = 8 * KIB
CHUNK_BYTES_AVERAGE = 32 * KIB
CHUNK_BYTES_MAX = 128 * KIB
WHOLE_FILE_BYTES_MAX = 16 * KIB  # a file up to here is one chunk and is not cut
NODE_BYTES_MAX = 128 * KIB  # plain bytes of one node
NODE_BYTES_TARGET = 16 * KIB
PLAIN_BYTES_MAX = 128 * KIB  # of any record
STORED_BYTES_MAX = PLAIN_BYTES_MAX + 1 * KIB
PACK_DATA_BYTES_MAX = 64 * MIB
PACK_META_BYTES_MAX = 16 * MIB
PACK_RECORDS_MAX = 1 << 20
TREE_LEVELS_MAX = 16

# --- journal ---------------------------------------------------------------------------------------------
JOURNAL_BYTES = 16 * MIB  # each of the two files
JOURNAL_FRAME_BYTES_MAX = 1 * MIB
JOURNAL_INLINE_BYTES_MAX = 256 * KIB  # dirty bytes up to here go into the journal instead of a pack

# --- memory and time -------------------------------------------------------------------------------------
DIRTY_BYTES_MAX = 32 * MIB  # writers wait here
DIRTY_BYTES_FLUSH = 8 * MIB  # the flusher starts here
DIRTY_SECONDS_MAX = 5.0
JOURNAL_SECONDS_MAX = 5.0
COMMIT_SECONDS_MAX = 60.0
MEMTABLE_ITEMS_COMMIT = 40_000
NODE_CACHE_BYTES = 24 * MIB
CHUNK_CACHE_BYTES = 8 * MIB
LOCATION_CACHE_ENTRIES = 40_000
INODE_CACHE_ENTRIES = 40_000
DIRECTORY_COMPLETE_ENTRIES_MAX = 50_000
DIRECTORY_CACHE_ENTRIES = 150_000  # over all directories
SWITCH_INTERVAL_SECONDS = 0.0005

# --- disk full -------------------------------------------------------------------------------------------
RESERVE_BYTES = 16 * MIB  # the file STORE/reserve, given up so that deleting stays possible
FREE_BYTES_MIN = 48 * MIB  # writes are refused when the disk below has less

assert CHUNK_BYTES_MIN < CHUNK_BYTES_AVERAGE < CHUNK_BYTES_MAX <= PLAIN_BYTES_MAX
assert NODE_BYTES_TARGET * 2 <= NODE_BYTES_MAX <= PLAIN_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX <= PLAIN_BYTES_MAX
assert DIRTY_BYTES_FLUSH < DIRTY_BYTES_MAX
assert DIRTY_BYTES_MAX * 2 <= PACK_DATA_BYTES_MAX  # one flush always fits into a fresh pack
assert JOURNAL_INLINE_BYTES_MAX * 2 < JOURNAL_FRAME_BYTES_MAX * 2 < JOURNAL_BYTES
assert 3 + VIEW_BITS + INO_BITS <= 64  # a node id is (kind of place, view, inode number)
assert NAME_BYTES_MAX <= KEY_SUFFIX_BYTES_MAX
