"""L0 limits: every number of snapfs, with its unit last, and their relations asserted at import.

What comes from disk or from a user is checked against these before memory is spent on it.
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

# --- format ----------------------------------------------------------------------------------------------
FORMAT_VERSION = 1
STREAM_ARRAY_ELEMENTS_MAX = 64  # of one msgpack array inside a stream; the outer one is counted, not reserved
PACKER_BUFFER_BYTES = 32 * KIB  # first allocation of a msgpack packer

# --- identities ------------------------------------------------------------------------------------------
ID_BYTES = 32
UUID_BYTES = 16
NAME_KEY_BYTES = 16  # the key of the directory hashes, in the superblock
PACK_NAME_BYTES = 16
INO_ROOT = 1
INO_ORPHANS = 2  # reserved: the ORPHAN items of a volume stand under it
INO_FIRST = 16  # the first number given to a file
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
CHUNK_NORMALIZATION = 2  # FastCDC's level
CHUNK_NORMALIZATION_MAX = 3
WHOLE_FILE_BYTES_MAX = 16 * KIB  # a file up to here is one chunk and is not cut
NODE_BYTES_MAX = 128 * KIB  # plain bytes of one node
NODE_BYTES_TARGET = 16 * KIB
PLAIN_BYTES_MAX = 128 * KIB  # of any record
STORED_BYTES_MAX = PLAIN_BYTES_MAX + 1 * KIB
PACK_DATA_BYTES_MAX = 64 * MIB
PACK_META_BYTES_MAX = 16 * MIB
RECORD_HEADER_BYTES = 52  # in the smallest record nothing follows it: more of them no pack can have
PACK_RECORDS_MAX = PACK_DATA_BYTES_MAX // RECORD_HEADER_BYTES
PACK_RECORDS_FULL = 1 << 16  # a pack with so many is sealed: reading its footer takes memory for each
TREE_LEVELS_MAX = 16
TREE_ITEMS_MAX = 1 << 48
TREE_READ_AHEAD_NODES = 16  # nodes asked for at once while changes are applied
TREE_BLOCK_ITEMS = 256  # changes applied without looking at the size of what comes out
TREE_SLICE_ITEMS = 1000  # items handled between two pauses: about a millisecond
TREE_RECOUNT_SHARE = 4  # a leaf that loses more than this part of its bytes is sized anew, item by item
BRANCH_ENTRY_BYTES = 44  # of one child in a branch, its key apart; an estimate to cut nodes by
ZSTD_LEVEL = 1
ZSTD_WINDOW_LOG_MAX = 17  # 128 KiB: a frame that asks for a larger window is refused
COMPRESS_BYTES_MIN = 128  # less is stored plain without trying
COMPRESS_SAVING_SHIFT = 4  # compressed only when that saves at least 1/2^4 of the plain bytes
COMPRESS_FAILURES_PROBE = 4  # after so many payloads in a row that did not, only a piece of the next is tried
COMPRESS_FAILURES_RETRY = 32  # and once in so many the whole all the same
COMPRESS_PROBE_BYTES = 4 * KIB  # that piece

# --- store -----------------------------------------------------------------------------------------------
CATALOG_CACHE_BYTES = 3 * MIB  # of each SQLite connection
MENTION_BLOCK_IDS = 1 << 16  # ids looked up at once by the second recount
MENTION_FILTER_BITS = 27  # of its bitmap of condemned prefixes: 16 MiB
MENTION_PAIRS_MAX = 4_000_000  # mentions it looks into; one more counts as live
MENTIONS_SHOWN_MAX = 1000  # live mentions it tells of one by one
PROOF_INDEX_ROWS = 10_500_000  # of the chunk index in memory at once: 9 bytes each
PROOF_IDS_WAITING = 500_000  # ids of nodes before doubles are sorted out
PROOF_NODES_AT_ONCE = 20_000  # located and put in order at once
PUT_RECORD_BITS = 26  # of an id, noted for each put during a recount: 8 MiB per kind of chunk
LOCATE_IDS_MAX = 500  # looked up by one statement
INSERT_ROWS_MAX = 1000  # rows inserted by one statement
READ_BYTES_MAX = 1 * MIB  # neighbouring records are joined into one read up to here
READ_AHEAD_BYTES = 4 * MIB  # of a pack, when cold reads follow one another
READ_GAP_BYTES_MAX = 16 * KIB  # records count as neighbours up to this distance
PACK_FILES_OPEN_MAX = 128
SCAN_WINDOW_BYTES = 256 * KIB  # read at once when a pack is scanned
AUDIT_LINE_BYTES_MAX = 64 * KIB
LOCK_HOLDER_BYTES = 4 * KIB  # the text that names the holder, padded
LOCK_RETRY_SECONDS = 0.01
JOURNAL_SEQUENCE_GAP = (
    1 << 20
)  # skipped after an unclean stop, so that a torn record's number never comes back

# --- journal ---------------------------------------------------------------------------------------------
JOURNAL_BYTES = 16 * MIB  # each of the two files
JOURNAL_FRAME_BYTES_MAX = 1 * MIB
JOURNAL_FRAME_BYTES_TARGET = 704 * KIB  # a record is split here; estimates may be a quarter too low
JOURNAL_HEADER_BYTES = 4 * KIB  # the block a journal file begins with
JOURNAL_INLINE_BYTES_MAX = 256 * KIB  # dirty bytes up to here go into the journal instead of a pack

# --- memory and time -------------------------------------------------------------------------------------
DIRTY_BYTES_MAX = 32 * MIB  # writers wait here
DIRTY_BYTES_FLUSH = 8 * MIB  # the flusher starts here
DIRTY_SECONDS_MAX = 5.0
JOURNAL_SECONDS_MAX = 5.0
COMMIT_SECONDS_MAX = 60.0
MEMTABLE_ITEMS_COMMIT = 30_000
MEMTABLE_ITEMS_MAX = 100_000  # writers wait here until a commit is done
NODE_CACHE_BYTES = 16 * MIB
CHUNK_CACHE_BYTES = 8 * MIB
LOCATION_CACHE_ENTRIES = 20_000
INODE_CACHE_ENTRIES = 12_000
SNAPSHOT_INODE_CACHE_ENTRIES = 4_000
SNAPSHOT_VIEWS_CACHED_MAX = 32
EXTENTS_PER_CALL_MAX = 1 << 20  # of one read or one region to flush
EXTENTS_PAGE = 1000  # when a whole file is gone through
DIRECTORY_COMPLETE_ENTRIES_MAX = 50_000
DIRECTORY_CACHE_ENTRIES = 60_000  # over all directories of one view
XATTR_CACHE_BYTES = 1 * MIB  # inline extended attributes kept with the inodes of one view
XATTR_ITEM_BYTES = 256  # of a value that stands inline count as one more item of the memtable
SWITCH_INTERVAL_SECONDS = 0.0005
SESSION_YIELD_SECONDS = 0.001  # a flood of requests lets other tasks run this often
SESSION_TASKS_IDLE = 8  # workers kept waiting
SESSION_TASKS_MAX = 64  # requests that may sleep in handlers at a time; more wait in the kernel

DAMAGE_REPORTS_MAX = 1000
UNREADABLE_CHUNKS_MAX = 100_000  # remembered, so that lost bytes which are written again are stored anew

# --- the mount -------------------------------------------------------------------------------------------
KERNEL_CACHE_SECONDS = 1e9  # 'without time limit' for the kernel's caches
PLACE_ATTRIBUTES_SECONDS = 1.0  # how long the kernel believes the attributes of computed directories
NOTIFY_CLOSE_SECONDS = 2.0  # how long a notification that the kernel is busy with may delay the end
READDIR_ENTRIES = 32  # one readdir answer of 4 KiB takes about 24

# --- disk full -------------------------------------------------------------------------------------------
RESERVE_BYTES = 16 * MIB  # the file STORE/reserve, given up so that deleting stays possible
FREE_BYTES_MIN = 48 * MIB  # writes are refused when the disk below has less

# --- deletion --------------------------------------------------------------------------------------------
BATCHES_RESTING_MAX = 64  # in quarantine at a time
COLLECT_ROWS = 5_000  # rows of the catalog taken from SQLite at once
COLLECT_RUN_RECORDS = 512  # neighbouring records read in one call, up to READ_BYTES_MAX
COLLECT_GAP_BYTES_MAX = 64 * KIB  # records count as neighbours up to this distance
COLLECT_REFS_BATCH = 1 << 17  # references compared at once
COLLECT_BUFFER_IDS = 1 << 18  # candidates kept in memory before they go to a temporary file
COLLECT_PASS_IDS = 4_000_000  # candidates compared in one pass over the leaves: 12 bytes each
COLLECT_ALARMS_MAX = 100  # pieces of evidence that a recount reports
COLLECT_SUSPEND_SECONDS = 1.0  # a recount during which the machine slept longer is not believed
COLLECT_PARTS = 100  # slices of a request, of up to 1,000 ids each, taken at once
COLLECT_TICK_NODES = 256  # nodes read between two reports of progress
COLLECT_SCAN_SHARE = 8  # more than this part of the index is read through rather than looked up
BATCH_SLICE_ROWS_MAX = 4000  # rows moved by one transaction
QUARANTINE_SLICE_ROWS = 1000  # of these, so many while writers wait
BATCH_REQUESTS_MAX = 5_000  # that one batch takes
BATCH_SLICE_PARTS = 100  # request parts of up to 32 KiB removed by one transaction
PLAN_BYTES_MAX = 256 * MIB  # of plan.json: 65,536 volumes and a million snapshots of 200 bytes
APPROVALS_MAX = 1000  # kept at a time
AUDIT_NAMES_MAX = 100  # of requests and people in one line of the audit log
AUDIT_LINES_SHOWN_MAX = 1000
EVIDENCE_SHOWN_BYTES_MAX = 64 * KIB  # of each file of an incident; all of it is in .snapfs/incidents
CANARY_SLICE_PART = 100  # one chunk in so many is freed first, and the store proved, before the rest goes
SEAL_WASTE_BYTES_MIN = 1 * MIB  # an open pack with less waste goes on until it is full
REPACKS_PER_SWEEP_MAX = 64  # new packs written in one go
COLLECT_FIRST_NS = 60 * 10**9  # after opening, before anything is collected
COLLECT_TICK_SECONDS = 1.0  # how often the collector looks whether something is due
COLLECT_PAUSE_SECONDS_MAX = 0.2  # between two slices
WHY_CHUNKS_MAX = 4096  # that one question is about
WHY_FILES_MAX = 100  # names of files in the answer, for each volume
PATH_PARTS_MAX = 4096  # of a path that is told: a damaged directory may be its own parent
CATALOG_LOOK_SECONDS = 86_400.0  # between two looks at all pages of the catalog
COLLECT_DAY_NS = 86_400 * 10**9  # the share of the store that may go is counted over this time
CLOCK_GAP_NS_MAX = 86_400 * 10**9  # of a gap between two openings, so much is believed of the wall clock
CLOCK_WRITE_NS = 60 * 10**9  # trusted time is written down so often
CANARY_CHUNKS = 16
CANARY_CHUNK_BYTES = 1 * KIB
SETTING_CHARACTERS_MAX = 4096
HOOK_ARGUMENTS_MAX = 64
EVIDENCE_FILES_MAX = 64  # of one incident
EVIDENCE_BYTES_MAX = 16 * MIB  # of one of these files
RECEIPT_ROWS_PER_READ = 4096

# --- verification and recovery ----------------------------------------------------------------------------
SCRUB_SLOTS = 4096  # the space of ids is cut into so many, by their first 12 bits
SCRUB_ROWS_MAX = 200_000  # chunks of one pass: about 40 MiB of its process
SCRUB_BYTES_PASS = (
    4 * GIB
)  # read in one pass; the collector waits meanwhile, and what was read is kept at its end
SCRUB_READ_BYTES = 4 * MIB  # neighbouring records are joined into one read up to here
SCRUB_BAD_MAX = 10_000  # chunks that one pass tells of
SCRUB_TICK_SECONDS = 600  # between two steps of the scheduled scrub
EXPORT_LINE_CHUNKS = 1000  # on one line of an export: part of its format
EXPORT_LINE_BYTES_MAX = 64 * MIB  # a line that is read: a file with very many attributes has a long one
EXPORT_NODES_CACHED = 256  # decoded, by one export
RECHECK_WRONG_MAX = 10_000  # chunks that one recheck tells of
RECOVER_LOST_MAX = 200_000  # lost chunks of one snapshot that a survey tells of
SURVEY_SLICE = 50_000  # references to data that a survey looks at together: about 30 MiB
RECOVER_SLICE = 256  # lost chunks brought back by one transaction
BACKUP_SECONDS = 60  # between two looks whether the catalog needs a new backup
BACKUP_NAMES_SECONDS = 1.0  # between two looks whether names of volumes or snapshots have changed
BACKUP_SHARE = 20  # a backup waits that many times as long as the one before took
BACKUP_BYTES_MAX = 1 * GIB  # of one file: some 5 million snapshots
BACKUPS_RECENT = 8  # minutes of which the last backup stays
BACKUPS_DAYS = 14  # days likewise
REBUILD_TREES_MAX = 1000  # trees that nothing names any more and a rebuild makes snapshots of
REBUILD_BAD_MAX = 10_000  # things that could not be read and are named
REBUILD_EPOCH_GAP = 1 << 20  # commits since the backup that nobody tells of
REBUILD_NUMBER_GAP = 1024  # views, volumes, requests, batches and incidents likewise
REBUILD_NUMBER_MAX = 1 << 60  # a larger one in a file is nonsense
INDEX_ROW_BYTES_MIN = 48  # that a row of the index takes in a catalog at least
SCRUB_FRESH_NS = (
    12 * 3600 * 10**9
)  # what was verified within this time is not read again by a scrub that goes on

# --- service and command line ----------------------------------------------------------------------------
CONTROL_REQUEST_BYTES_MAX = 64 * KIB  # one JSON line from a client
CONTROL_RESPONSE_BYTES_MAX = 256 * MIB  # one JSON line from the daemon
CONTROL_CONNECTIONS_MAX = 32
CONTROL_IDLE_SECONDS = 30.0  # a client that has not sent its line by then is let go
CALL_WAIT_SECONDS = (
    60.0  # a command waits so long for a store that starts, stops or is busy with another command
)
CALL_RETRY_SECONDS = 0.02
PROGRESS_SECONDS = 0.2  # how often a command that takes long is asked how far it is
MOUNT_WAIT_SECONDS = 120.0  # a mount waits so long for the daemon before it to finish
MOUNT_LOOK_SECONDS = 1.0  # and looks so often whether that one is on its way out at all
UMOUNT_WAIT_SECONDS = 600.0  # the last commit may have much to write
SOCKET_PATH_BYTES_MAX = 107  # sun_path without its final zero
LOG_BYTES_MAX = 4 * MIB  # of daemon.log; one older file of the same size is kept
GARBAGE_THRESHOLDS = (50_000, 50, 1000)
MALLOC_ARENAS_MAX = 2
MALLOC_TRIM_SECONDS = 5.0  # how often a daemon that worked gives free memory back
MALLOC_TRIM_BYTES = 32 * MIB  # free memory at the heap's end that is kept until then
MALLOC_MMAP_BYTES = 16 * MIB  # smaller blocks come from the heap; beyond a write and a region to flush
MOUNTINFO_BYTES_MAX = 16 * MIB
RUNTIME_ENTRY_BYTES_MAX = 64 * KIB
TABLE_COLUMNS_MAX = 4000  # of a table that goes into a pipe

assert PACK_RECORDS_FULL <= PACK_RECORDS_MAX
assert CHUNK_BYTES_MIN < CHUNK_BYTES_AVERAGE < CHUNK_BYTES_MAX <= PLAIN_BYTES_MAX
assert NODE_BYTES_TARGET * 2 <= NODE_BYTES_MAX <= PLAIN_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX <= PLAIN_BYTES_MAX
assert DIRTY_BYTES_FLUSH < DIRTY_BYTES_MAX
assert RESERVE_BYTES < FREE_BYTES_MIN  # else writers would eat the reserve once it is given up
assert DIRTY_BYTES_MAX * 2 <= PACK_DATA_BYTES_MAX  # one flush always fits into a fresh pack
assert JOURNAL_INLINE_BYTES_MAX * 2 < JOURNAL_FRAME_BYTES_MAX * 2 < JOURNAL_BYTES
assert 3 + VIEW_BITS + INO_BITS <= 64  # a node id is (kind of place, view, inode number)
assert HASH_COLLISIONS_MAX <= STREAM_ARRAY_ELEMENTS_MAX
assert JOURNAL_FRAME_BYTES_TARGET * 5 // 4 + JOURNAL_INLINE_BYTES_MAX // 4 <= JOURNAL_FRAME_BYTES_MAX
assert COMPRESS_PROBE_BYTES >= COMPRESS_BYTES_MIN
assert 0 < COMPRESS_FAILURES_PROBE < COMPRESS_FAILURES_RETRY
assert 1 << ZSTD_WINDOW_LOG_MAX >= PLAIN_BYTES_MAX
assert NAME_BYTES_MAX <= KEY_SUFFIX_BYTES_MAX
# Every branch has two children at least, and can give one away, even at the right edge.
assert NODE_BYTES_TARGET // 4 > 4 * (KEY_SUFFIX_BYTES_MAX + BRANCH_ENTRY_BYTES)
assert 0 < SESSION_TASKS_IDLE < SESSION_TASKS_MAX
assert CANARY_CHUNK_BYTES <= CHUNK_BYTES_MAX
assert (
    CANARY_CHUNKS * (XATTR_NAME_BYTES_MAX + KEY_SUFFIX_BYTES_MAX) < NODE_BYTES_MAX
)  # one leaf names them all
