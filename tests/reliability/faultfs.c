/* Preloaded into a process: counts its calls that change files under one folder, and makes one of them the last.
 *
 *   faultfs_arm(folder, at, mode, log)   mode 0 counts; 1 kills the process at call number `at` (1, 2, ...), a write half
 *                                        done; 2 fails that call and every later one that needs room with ENOSPC.
 *   faultfs_disarm()                     nothing is counted or failed from here on.
 *
 * Counted: open for writing, write, writev, pwrite, fsync, fdatasync, ftruncate, rename, mkdir, unlink, rmdir, and their
 * *at and *64 forms. Every call is a line "number name path [new path]" of the file descriptor `log`. Raw system calls are
 * not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL };
enum { GO, FAIL, HALF };

static char folder[PATH_MAX];
static int armed, mode, log_to, calls, at;

void faultfs_arm(const char *under, int number, int how, int log) {
  snprintf(folder, sizeof folder, "%s", under);
  calls = 0, at = number, mode = how, log_to = log, armed = 1;
}

void faultfs_disarm(void) { armed = 0; }

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

/* The absolute path of `name` as seen from the folder `dir`, or of `dir` itself if there is no name. */
static const char *path_of(int dir, const char *name, char *out) {
  char link[64];
  ssize_t length = 0;
  if (name && name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
    return out;
  }
  if (dir == AT_FDCWD) {
    if (!getcwd(out, PATH_MAX)) out[0] = 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    length = readlink(link, out, PATH_MAX - 1);
    out[length > 0 ? length : 0] = 0;
  }
  if (name) {
    strncat(out, "/", PATH_MAX - strlen(out) - 1);
    strncat(out, name, PATH_MAX - strlen(out) - 1);
  }
  return out;
}

/* One call: what is to become of it. */
static int seen(const char *call, const char *path, const char *to, int needs_room, int is_write) {
  if (!armed || strncmp(path, folder, strlen(folder)) != 0) return GO;
  int number = __sync_add_and_fetch(&calls, 1);
  dprintf(log_to, "%d %s %s%s%s\n", number, call, path, to ? " " : "", to ? to : "");
  if (mode == KILL && number == at) {
    if (is_write) return HALF;
    kill(getpid(), SIGKILL);
  }
  if (mode == FULL && number >= at && needs_room) {
    errno = ENOSPC;
    return FAIL;
  }
  return GO;
}

#define SEEN_AT(call, dir, name, room) \
  char path[PATH_MAX];                 \
  if (armed && seen(call, path_of(dir, name, path), NULL, room, 0) == FAIL) return -1

#define OPEN(function)                                                                      \
  int function(const char *name, int flags, ...) {                                          \
    static int (*real)(const char *, int, ...);                                             \
    if (!real) real = next(#function);                                                      \
    va_list list;                                                                           \
    va_start(list, flags);                                                                  \
    mode_t bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;               \
    va_end(list);                                                                           \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) {                                            \
      SEEN_AT("open", AT_FDCWD, name, 1);                                                   \
    }                                                                                       \
    return real(name, flags, bits);                                                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                                    \
  int function(int dir, const char *name, int flags, ...) {                                 \
    static int (*real)(int, const char *, int, ...);                                        \
    if (!real) real = next(#function);                                                      \
    va_list list;                                                                           \
    va_start(list, flags);                                                                  \
    mode_t bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;               \
    va_end(list);                                                                           \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) {                                            \
      SEEN_AT("open", dir, name, 1);                                                        \
    }                                                                                       \
    return real(dir, name, flags, bits);                                                    \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = next("write");
  char path[PATH_MAX];
  int fate = armed && fd != log_to ? seen("write", path_of(fd, NULL, path), NULL, 1, 1) : GO;
  if (fate == FAIL) return -1;
  if (fate == HALF) {
    real(fd, data, size / 2);
    kill(getpid(), SIGKILL);
  }
  return real(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  static ssize_t (*real)(int, const struct iovec *, int);
  if (!real) real = next("writev");
  char path[PATH_MAX];
  int fate = armed ? seen("write", path_of(fd, NULL, path), NULL, 1, 1) : GO;
  if (fate == FAIL) return -1;
  if (fate == HALF) {
    real(fd, parts, (count + 1) / 2);
    kill(getpid(), SIGKILL);
  }
  return real(fd, parts, count);
}

#define PWRITE(function, offset_type)                                                       \
  ssize_t function(int fd, const void *data, size_t size, offset_type offset) {             \
    static ssize_t (*real)(int, const void *, size_t, offset_type);                         \
    if (!real) real = next(#function);                                                      \
    char path[PATH_MAX];                                                                    \
    int fate = armed ? seen("write", path_of(fd, NULL, path), NULL, 1, 1) : GO;             \
    if (fate == FAIL) return -1;                                                            \
    if (fate == HALF) {                                                                     \
      real(fd, data, size / 2, offset);                                                     \
      kill(getpid(), SIGKILL);                                                              \
    }                                                                                       \
    return real(fd, data, size, offset);                                                    \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FD(function, call)                                                               \
  int function(int fd) {                                                                    \
    static int (*real)(int);                                                                \
    if (!real) real = next(#function);                                                      \
    SEEN_AT(call, fd, NULL, 1);                                                             \
    return real(fd);                                                                        \
  }
ON_FD(fsync, "fsync")
ON_FD(fdatasync, "fsync")

#define TRUNCATE(function, offset_type)                                                     \
  int function(int fd, offset_type length) {                                                \
    static int (*real)(int, offset_type);                                                   \
    if (!real) real = next(#function);                                                      \
    SEEN_AT("ftruncate", fd, NULL, 1);                                                      \
    return real(fd, length);                                                                \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static int rename_seen(int from, const char *old, int to, const char *new) {
  char path[PATH_MAX], target[PATH_MAX];
  return armed && seen("rename", path_of(from, old, path), path_of(to, new, target), 1, 0) == FAIL;
}

int rename(const char *old, const char *new) {
  static int (*real)(const char *, const char *);
  if (!real) real = next("rename");
  return rename_seen(AT_FDCWD, old, AT_FDCWD, new) ? -1 : real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
  static int (*real)(int, const char *, int, const char *);
  if (!real) real = next("renameat");
  return rename_seen(from, old, to, new) ? -1 : real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  static int (*real)(int, const char *, int, const char *, unsigned);
  if (!real) real = next("renameat2");
  return rename_seen(from, old, to, new) ? -1 : real(from, old, to, new, flags);
}

int mkdir(const char *name, mode_t bits) {
  static int (*real)(const char *, mode_t);
  if (!real) real = next("mkdir");
  SEEN_AT("mkdir", AT_FDCWD, name, 1);
  return real(name, bits);
}

int mkdirat(int dir, const char *name, mode_t bits) {
  static int (*real)(int, const char *, mode_t);
  if (!real) real = next("mkdirat");
  SEEN_AT("mkdir", dir, name, 1);
  return real(dir, name, bits);
}

int unlink(const char *name) {
  static int (*real)(const char *);
  if (!real) real = next("unlink");
  SEEN_AT("unlink", AT_FDCWD, name, 0);
  return real(name);
}

int unlinkat(int dir, const char *name, int flags) {
  static int (*real)(int, const char *, int);
  if (!real) real = next("unlinkat");
  SEEN_AT(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, name, 0);
  return real(dir, name, flags);
}

int rmdir(const char *name) {
  static int (*real)(const char *);
  if (!real) real = next("rmdir");
  SEEN_AT("rmdir", AT_FDCWD, name, 0);
  return real(name);
}
