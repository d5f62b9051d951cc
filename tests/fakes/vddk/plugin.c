/* A stand-in for nbdkit-vddk-plugin: the same parameters and the same strictness, without VMware's library.
 *
 * The "host" is a test's own server behind a Unix socket in libdir (host.py). It is told server, port, user, password,
 * thumbprint, VM, snapshot, transports and file, and answers with an image of that snapshot's disk, or with an error as
 * VixDiskLib words it. As with the real plugin nothing of this happens before a client connects, each connection is a
 * handle of its own, and requests of more than 2 MiB fail.
 *
 * Beyond the real one it insists on what our reader must always give: snapshot, transports, a password in a file.
 */

#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <nbdkit-plugin.h>

#include "host_link.h"

#define LARGEST_REQUEST (2 * 1024 * 1024)

enum { FILE_, LIBDIR, SERVER, PORT, USER, THUMBPRINT, VM, SNAPSHOT, TRANSPORTS, CONFIG, COOKIE, NFCHOSTPORT,
       COMPRESSION, UNBUFFERED, SINGLE_LINK, PASSWORD, COUNT };
static const char *const names[COUNT] = {
  "file", "libdir", "server", "port", "user", "thumbprint", "vm", "snapshot", "transports", "config", "cookie",
  "nfchostport", "compression", "unbuffered", "single-link", "password" };
static const char *values[COUNT];
static char *password;
static atomic_ullong served;

struct handle {
  int fd;
  int64_t size;
  unsigned long long dies_after;   /* bytes, over all handles; 0 for never */
  long slow_ns;                    /* a read takes at least so long */
};

static int
config (const char *key, const char *value)
{
  if (strcmp (key, "password") == 0) {
    if (value[0] != '+' && value[0] != '-') {
      nbdkit_error ("password: only a file or descriptor, never in the command");
      return -1;
    }
    free (password);
    if (nbdkit_read_password (value, &password) == -1)
      return -1;
    values[PASSWORD] = password;
    return 0;
  }
  for (int i = 0; i < COUNT; i++)
    if (strcmp (key, names[i]) == 0) {
      values[i] = value;
      return 0;
    }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
config_complete (void)
{
  static const int needed[] = { FILE_, SERVER, USER, THUMBPRINT, VM, SNAPSHOT, TRANSPORTS };
  for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
    if (values[needed[i]] == NULL) {
      nbdkit_error ("missing parameter: %s", names[needed[i]]);
      return -1;
    }
  if (password == NULL) {
    nbdkit_error ("missing parameter: password");
    return -1;
  }
  if (strncmp (values[VM], "moref=", 6) != 0) {
    nbdkit_error ("vm= must be moref=…");
    return -1;
  }
  return 0;
}

static void
dump_plugin (void)
{
  char path[PATH_MAX];
  printf ("vddk_default_libdir=/usr/lib/vmware-vix-disklib\n");
  snprintf (path, sizeof path, "%s/lib64/libvixDiskLib.so.8", values[LIBDIR] ? values[LIBDIR] : "");
  if (access (path, R_OK) == 0)
    printf ("vddk_library_version=8\n");
}

static void *
vddk_open (int readonly)
{
  char answer[PATH_MAX + 64];
  int path = 0;
  struct stat status;
  struct handle *h;

  if (!readonly) {
    nbdkit_error ("the stand-in only reads");
    return NULL;
  }
  if (!ask_host (values[LIBDIR] ? values[LIBDIR] : "", COUNT, names, values, answer, sizeof answer)) {
    nbdkit_error ("VixDiskLib_ConnectEx: Cannot connect to host");
    return NULL;
  }
  if (strncmp (answer, "OK ", 3) != 0) {
    nbdkit_error ("%s", answer + strcspn (answer, " ") + 1);
    return NULL;
  }
  h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  if (sscanf (answer, "OK %llu %ld %n", &h->dies_after, &h->slow_ns, &path) < 2 || path == 0) {
    nbdkit_error ("the host answered '%s'", answer);
    free (h);
    return NULL;
  }
  h->fd = open (answer + path, O_RDONLY | O_CLOEXEC);
  if (h->fd == -1 || fstat (h->fd, &status) == -1) {
    nbdkit_error ("VixDiskLib_Open: %s: %m", answer + path);
    if (h->fd != -1)
      close (h->fd);
    free (h);
    return NULL;
  }
  h->size = status.st_size;
  return h;
}

static void
vddk_close (void *handle)
{
  struct handle *h = handle;
  close (h->fd);
  free (h);
}

static int64_t
get_size (void *handle)
{
  return ((struct handle *) handle)->size;
}

static int
vddk_pread (void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;
  char *to = buffer;
  (void) flags;

  if (count > LARGEST_REQUEST) {
    nbdkit_error ("VixDiskLib_Read: Memory allocation failed. Out of memory.");
    nbdkit_set_error (ENOMEM);
    return -1;
  }
  if (h->dies_after != 0 && atomic_fetch_add (&served, count) + count > h->dies_after)
    abort ();
  if (h->slow_ns > 0) {
    struct timespec wait = { .tv_sec = h->slow_ns / 1000000000L, .tv_nsec = h->slow_ns % 1000000000L };
    nanosleep (&wait, NULL);
  }
  while (count > 0) {
    ssize_t got = pread (h->fd, to, count, offset);
    if (got <= 0) {
      nbdkit_error ("VixDiskLib_Read: %s", got == 0 ? "the disk ended" : strerror (errno));
      nbdkit_set_error (EIO);
      return -1;
    }
    to += got;
    offset += got;
    count -= got;
  }
  return 0;
}

static int
can_extents (void *handle)
{
  (void) handle;
  return 1;
}

static int
extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *found)
{
  struct handle *h = handle;
  uint64_t end = offset + count;
  (void) flags;

  while (offset < end) {
    off_t data = lseek (h->fd, offset, SEEK_DATA);
    off_t hole;
    if (data == -1 && errno == ENXIO)
      data = h->size;
    if (data == -1) {
      nbdkit_error ("lseek: %m");
      return -1;
    }
    if ((uint64_t) data > offset
        && nbdkit_add_extent (found, offset, data - offset, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) == -1)
      return -1;
    if (data >= h->size)
      return 0;
    hole = lseek (h->fd, data, SEEK_HOLE);
    if (hole == -1) {
      nbdkit_error ("lseek: %m");
      return -1;
    }
    if (nbdkit_add_extent (found, data, hole - data, 0) == -1)
      return -1;
    offset = hole;
  }
  return 0;
}

static void
unload (void)
{
  free (password);
}

static struct nbdkit_plugin plugin = {
  .name = "vddk",
  .longname = "stand-in for the VMware VDDK plugin",
  .version = "1.0",
  .magic_config_key = "file",
  .unload = unload,
  .config = config,
  .config_complete = config_complete,
  .dump_plugin = dump_plugin,
  .open = vddk_open,
  .close = vddk_close,
  .get_size = get_size,
  .pread = vddk_pread,
  .can_extents = can_extents,
  .extents = extents,
};

NBDKIT_REGISTER_PLUGIN (plugin)
