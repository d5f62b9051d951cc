/* A stand-in for VMware's libvixDiskLib, for nbdkit's own vddk plugin: as much of its interface as reading takes.
 *
 * What disks there are the test's host says (host.py), by way of a Unix socket in libdir.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "host_link.h"

#define SECTOR 512
#define LARGEST_REQUEST (2 * 1024 * 1024)
#define OK 0
#define OUT_OF_MEMORY 2
#define ASYNC 25000
#define REFUSED 4000   /* the text is the host's */

typedef uint64_t Error;
typedef void Log (const char *format, va_list arguments);
typedef void Done (void *data, Error result);

struct credentials { char *user; char *password; char *key; };
struct params {
  char *vm; char *server; char *thumbprint; long reserved1; int kind;
  struct credentials uid;
  uint32_t port; uint32_t nfc_port;
  char reserved[256];
};
struct connection { struct params params; char *snapshot; char *transports; };
struct disk { int fd; int64_t size; unsigned long long dies_after; long slow_ns; };
struct geometry { uint32_t cylinders, heads, sectors; };
struct info {
  struct geometry bios, physical; uint64_t capacity; int adapter; int links; char *parent; char *uuid;
  uint32_t logical_sector, physical_sector;
};
struct block { uint64_t offset, length; };
struct block_list { uint32_t count; struct block blocks[]; };

static char *libdir;
static atomic_ullong served;
static _Thread_local char refusal[PATH_MAX + 64];

static char *
copy (const char *text)
{
  return text ? strdup (text) : NULL;
}

Error
VixDiskLib_InitEx (uint32_t major, uint32_t minor, Log *log, Log *warn, Log *panic, const char *dir, const char *config)
{
  (void) major; (void) minor; (void) log; (void) warn; (void) panic; (void) config;
  libdir = strdup (dir ? dir : "");
  return OK;
}

void
VixDiskLib_Exit (void)
{
  free (libdir);
}

char *
VixDiskLib_GetErrorText (Error error, const char *unused)
{
  (void) unused;
  if (error == OUT_OF_MEMORY)
    return strdup ("Memory allocation failed. Out of memory.");
  return strdup (error == REFUSED ? refusal : "Unknown error");
}

void
VixDiskLib_FreeErrorText (char *text)
{
  free (text);
}

struct params *
VixDiskLib_AllocateConnectParams (void)
{
  return calloc (1, sizeof (struct params) + 256);
}

void
VixDiskLib_FreeConnectParams (struct params *params)
{
  free (params);
}

Error
VixDiskLib_ConnectEx (const struct params *params, char read_only, const char *snapshot, const char *transports,
                      struct connection **connection)
{
  if (!read_only) {
    snprintf (refusal, sizeof refusal, "the stand-in only reads");
    return REFUSED;
  }
  *connection = calloc (1, sizeof **connection);
  if (*connection == NULL)
    return OUT_OF_MEMORY;
  (*connection)->params = (struct params) {
    .vm = copy (params->vm), .server = copy (params->server), .thumbprint = copy (params->thumbprint),
    .uid = { .user = copy (params->uid.user), .password = copy (params->uid.password) }, .port = params->port };
  (*connection)->snapshot = copy (snapshot);
  (*connection)->transports = copy (transports);
  return OK;
}

Error
VixDiskLib_Disconnect (struct connection *connection)
{
  free (connection->params.vm);
  free (connection->params.server);
  free (connection->params.thumbprint);
  free (connection->params.uid.user);
  free (connection->params.uid.password);
  free (connection->snapshot);
  free (connection->transports);
  free (connection);
  return OK;
}

Error
VixDiskLib_Open (struct connection *connection, const char *path, uint32_t flags, struct disk **disk)
{
  static const char *const names[] = { "server", "port", "user", "password", "thumbprint", "vm", "snapshot",
                                       "transports", "file" };
  char port[16], answer[PATH_MAX + 64];
  const struct params *params = &connection->params;
  const char *values[] = { params->server, port, params->uid.user, params->uid.password, params->thumbprint,
                           params->vm, connection->snapshot, connection->transports, path };
  struct stat status;
  int where = 0;
  (void) flags;

  snprintf (port, sizeof port, "%u", params->port ? params->port : 443);
  if (!ask_host (libdir, sizeof names / sizeof names[0], names, values, answer, sizeof answer)
      || strncmp (answer, "OK ", 3) != 0) {
    const char *text = strchr (answer, ':');
    snprintf (refusal, sizeof refusal, "%s", text ? text + 2 : "Cannot connect to host");
    return REFUSED;
  }
  *disk = calloc (1, sizeof **disk);
  if (*disk == NULL)
    return OUT_OF_MEMORY;
  if (sscanf (answer, "OK %llu %ld %n", &(*disk)->dies_after, &(*disk)->slow_ns, &where) < 2)
    abort ();
  (*disk)->fd = open (answer + where, O_RDONLY | O_CLOEXEC);
  if ((*disk)->fd == -1 || fstat ((*disk)->fd, &status) == -1)
    abort ();
  (*disk)->size = status.st_size;
  return OK;
}

Error
VixDiskLib_Close (struct disk *disk)
{
  close (disk->fd);
  free (disk);
  return OK;
}

const char *
VixDiskLib_GetTransportMode (struct disk *disk)
{
  (void) disk;
  return "nbdssl";
}

const char *
VixDiskLib_ListTransportModes (void)
{
  return "file:nbdssl:nbd";
}

Error
VixDiskLib_Create (struct connection *connection, const char *path, const void *params, void *progress, void *data)
{
  (void) connection; (void) path; (void) params; (void) progress; (void) data;
  abort ();
}

Error
VixDiskLib_GetInfo (struct disk *disk, struct info **info)
{
  *info = calloc (1, sizeof **info + 256);
  if (*info == NULL)
    return OUT_OF_MEMORY;
  (*info)->capacity = disk->size / SECTOR;
  (*info)->adapter = 3;
  (*info)->links = 1;
  (*info)->logical_sector = (*info)->physical_sector = SECTOR;
  return OK;
}

void
VixDiskLib_FreeInfo (struct info *info)
{
  free (info);
}

Error
VixDiskLib_Read (struct disk *disk, uint64_t start, uint64_t sectors, unsigned char *buffer)
{
  uint64_t count = sectors * SECTOR, offset = start * SECTOR;
  if (count > LARGEST_REQUEST)
    return OUT_OF_MEMORY;
  if (disk->dies_after != 0 && atomic_fetch_add (&served, count) + count > disk->dies_after)
    abort ();
  if (disk->slow_ns > 0) {
    struct timespec wait = { .tv_sec = disk->slow_ns / 1000000000L, .tv_nsec = disk->slow_ns % 1000000000L };
    nanosleep (&wait, NULL);
  }
  while (count > 0) {
    ssize_t got = pread (disk->fd, buffer, count, offset);
    if (got <= 0) {
      snprintf (refusal, sizeof refusal, "the disk cannot be read: %s", got == 0 ? "it ended" : strerror (errno));
      return REFUSED;
    }
    buffer += got;
    offset += got;
    count -= got;
  }
  return OK;
}

Error
VixDiskLib_ReadAsync (struct disk *disk, uint64_t start, uint64_t sectors, unsigned char *buffer, Done *done,
                      void *data)
{
  done (data, VixDiskLib_Read (disk, start, sectors, buffer));
  return ASYNC;
}

Error
VixDiskLib_Write (struct disk *disk, uint64_t start, uint64_t sectors, const unsigned char *buffer)
{
  (void) disk; (void) start; (void) sectors; (void) buffer;
  abort ();
}

Error
VixDiskLib_WriteAsync (struct disk *disk, uint64_t start, uint64_t sectors, const unsigned char *buffer, Done *done,
                       void *data)
{
  (void) done; (void) data;
  return VixDiskLib_Write (disk, start, sectors, buffer);
}

Error
VixDiskLib_Flush (struct disk *disk)
{
  (void) disk;
  return OK;
}

Error
VixDiskLib_Wait (struct disk *disk)
{
  (void) disk;
  return OK;
}

/* Says that everything is allocated, from `start` on. */
Error
VixDiskLib_QueryAllocatedBlocks (struct disk *disk, uint64_t start, uint64_t sectors, uint64_t chunk,
                                 struct block_list **list)
{
  (void) disk; (void) chunk;
  *list = calloc (1, sizeof **list + sizeof (struct block));
  if (*list == NULL)
    return OUT_OF_MEMORY;
  (*list)->count = 1;
  (*list)->blocks[0] = (struct block) { start, sectors };
  return OK;
}

Error
VixDiskLib_FreeBlockList (struct block_list *list)
{
  free (list);
  return OK;
}
