/* Lets the catalog's disk fail below SQLite, where no Python code can stand: preloaded into a test's process.
 *
 * fault_set(part, call, error, after, count): of the calls of one kind ('w' write, 's' sync, 't' truncate or
 * allocate) on files whose name ends in `part`, let `count` fail with errno `error`, after `after` that work.
 * A failed write has written half of its bytes, as on a disk that fills up; a failed sync has synced nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char part[64];
static char kind;
static int error, after, count;
int fault_hits;

void fault_set(const char *new_part, char new_kind, int new_error, int new_after, int new_count)
{
    snprintf(part, sizeof part, "%s", new_part);
    kind = new_kind;
    error = new_error;
    after = new_after;
    count = new_count;
    fault_hits = 0;
}

static int fails(int fd, char call)
{
    char link[64], name[4096];
    ssize_t length;
    if (call != kind || count == 0 || part[0] == 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, name, sizeof name - 1);
    if (length < (ssize_t)strlen(part) || strncmp(name + length - strlen(part), part, strlen(part)) != 0)
        return 0;
    if (after > 0) {
        after--;
        return 0;
    }
    count--;
    fault_hits++;
    errno = error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (!fails(fd, 'w'))
        return REAL(pwrite)(fd, data, size, offset);
    REAL(pwrite)(fd, data, size / 2, offset);
    errno = error;
    return -1;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    if (!fails(fd, 'w'))
        return REAL(pwrite64)(fd, data, size, offset);
    REAL(pwrite64)(fd, data, size / 2, offset);
    errno = error;
    return -1;
}

ssize_t write(int fd, const void *data, size_t size)
{
    return fails(fd, 'w') ? -1 : REAL(write)(fd, data, size);
}

int fsync(int fd)
{
    return fails(fd, 's') ? -1 : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    return fails(fd, 's') ? -1 : REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size)
{
    return fails(fd, 't') ? -1 : REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return fails(fd, 't') ? -1 : REAL(ftruncate64)(fd, size);
}
