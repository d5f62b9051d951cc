/* How the stand-ins ask the test's host for a disk: "name=value" lines, an empty line, and one line of answer. */

#ifndef SENDENSE_HOST_LINK_H
#define SENDENSE_HOST_LINK_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int
connect_host (const char *libdir)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd == -1)
    return -1;
  snprintf (address.sun_path, sizeof address.sun_path, "%s/host.sock", libdir);
  if (connect (fd, (struct sockaddr *) &address, sizeof address) == -1) {
    close (fd);
    return -1;
  }
  return fd;
}

/* Asks the host; the answer is "OK <dies after> <slow ns> <path>" or "ERROR <text>". Values that are NULL are left out. */
static bool
ask_host (const char *libdir, int count, const char *const *names, const char *const *values, char *answer,
          size_t size)
{
  int fd = connect_host (libdir);
  FILE *stream = fd == -1 ? NULL : fdopen (fd, "r+");
  bool answered = false;
  if (stream == NULL) {
    if (fd != -1)
      close (fd);
    return false;
  }
  for (int i = 0; i < count; i++)
    if (values[i] != NULL)
      fprintf (stream, "%s=%s\n", names[i], values[i]);
  fputc ('\n', stream);
  if (fflush (stream) == 0 && fgets (answer, size, stream) != NULL) {
    answer[strcspn (answer, "\n")] = '\0';
    answered = true;
  }
  fclose (stream);
  return answered;
}

#endif
