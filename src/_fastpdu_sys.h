/*
 * System calls of the engine, and the only #ifdefs of the project.
 *
 * Every function may be called without the GIL. Those that can fail return a negative errno, with
 * EWOULDBLOCK folded into EAGAIN. On platforms without POSIX sockets FP_HAVE_FD is 0 and only the
 * socket-object backend is used; the stubs below keep the extension compiling there.
 */
#ifndef FASTPDU_SYS_H
#define FASTPDU_SYS_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FP_IN 1
#define FP_OUT 2
#define FP_WAKE 4

static inline uint32_t fp_get32(const unsigned char *p)
{
    return ((uint32_t)p[0] << 24) | ((uint32_t)p[1] << 16) | ((uint32_t)p[2] << 8) | (uint32_t)p[3];
}

static inline void fp_put32(unsigned char *p, uint32_t v)
{
    p[0] = (unsigned char)(v >> 24);
    p[1] = (unsigned char)(v >> 16);
    p[2] = (unsigned char)(v >> 8);
    p[3] = (unsigned char)v;
}

/*
 * Copying where it may take twenty times as long (docs/engine.md, "Addresses"): memcpy() and the kernel are one
 * instruction (rep movsb) for large copies, and some processors (Zen 3 and 4) do it byte by byte if the target is 1 to
 * 31 bytes further on in its page than the source is in its own.
 */
#define FP_PAGE 4096

/* memcpy(), in pieces that are too short for that instruction where it would be slow. */
static inline void fp_copy(void *to, const void *from, size_t n)
{
    char *t = (char *)to;
    const char *f = (const char *)from;
    size_t behind = (size_t)((uintptr_t)t - (uintptr_t)f) % FP_PAGE;
    if (behind > 0 && behind < 32)
        for (; n > 2048; n -= 2048, t += 2048, f += 2048)
            memcpy(t, f, 2048);
    memcpy(t, f, n);
}

#ifdef _WIN32

#include <windows.h>

#define FP_HAVE_FD 0

typedef struct {
    void *iov_base;
    size_t iov_len;
} fp_iov;

static inline int64_t fp_now(void)
{
    LARGE_INTEGER frequency, counter;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&counter);
    return (int64_t)((double)counter.QuadPart / (double)frequency.QuadPart * 1e9);
}

static inline void *fp_malloc_page(size_t n) { return malloc(n); }
static inline int fp_dup(int fd) { (void)fd; return -ENOSYS; }
static inline void fp_close(int fd)
{
    if (fd >= 0)
        _close(fd);
}
static inline int fp_open(const char *path) { (void)path; return -ENOSYS; }
static inline int fp_create(const char *path) { (void)path; return -ENOSYS; }
static inline int64_t fp_file_size(int fd) { (void)fd; return -ENOSYS; }
static inline int64_t fp_recvv(int fd, fp_iov *v, int n) { (void)fd; (void)v; (void)n; return -ENOSYS; }
static inline int64_t fp_sendv(int fd, fp_iov *v, int n) { (void)fd; (void)v; (void)n; return -ENOSYS; }
static inline int64_t fp_pread(int fd, void *p, size_t n, int64_t at)
{
    HANDLE file = (HANDLE)_get_osfhandle(fd);
    OVERLAPPED where;
    DWORD got = 0;
    memset(&where, 0, sizeof where);
    where.Offset = (DWORD)(at & 0xFFFFFFFF);
    where.OffsetHigh = (DWORD)(at >> 32);
    if (!ReadFile(file, p, (DWORD)(n > 0x40000000 ? 0x40000000 : n), &got, &where))
        return GetLastError() == ERROR_HANDLE_EOF ? 0 : -EIO;
    return (int64_t)got;
}
static inline int fp_write_all(int fd, const void *p, size_t n)
{
    const char *c = (const char *)p;
    while (n > 0) {
        int k = _write(fd, c, (unsigned)(n > 0x40000000 ? 0x40000000 : n));
        if (k < 0)
            return -errno;
        c += k;
        n -= (size_t)k;
    }
    return 0;
}
static inline int fp_poll(int fd, int events, int wake, int64_t timeout)
{
    (void)fd; (void)events; (void)wake; (void)timeout;
    return -ENOSYS;
}
static inline int fp_wake_new(int ends[2]) { ends[0] = ends[1] = -1; return -ENOSYS; }
static inline void fp_wake_set(int fd) { (void)fd; }
static inline void fp_wake_clear(int fd) { (void)fd; }
static inline void fp_quickack(int fd) { (void)fd; }
static inline int fp_tcp_info(int fd, void *p, size_t n) { (void)fd; (void)p; (void)n; return -ENOSYS; }

#define FP_CAN_CORK 0
#define FP_CORK_PUSHES 0
static inline void fp_cork(int fd, int on) { (void)fd; (void)on; }
static inline void fp_yield(void) { }

#else /* POSIX */

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#define FP_HAVE_FD 1

typedef struct iovec fp_iov;

static inline int64_t fp_failed(void)
{
    return errno == EWOULDBLOCK ? -EAGAIN : -(int64_t)errno;
}

/* Monotonic time in nanoseconds. */
static inline int64_t fp_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Memory that begins with a page, or NULL; free() takes it. The kernel copies from and to it, in step with files. */
static inline void *fp_malloc_page(size_t n)
{
    void *p;
    return posix_memalign(&p, FP_PAGE, n) == 0 ? p : NULL;
}

static inline int fp_dup(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
#ifdef SO_NOSIGPIPE
    int one = 1;
    if (copy >= 0)
        setsockopt(copy, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    return copy < 0 ? -errno : copy;
}

static inline void fp_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* Bytes received, 0 at the end of the stream. Never blocks, whatever the mode of the socket. */
static inline int64_t fp_recvv(int fd, fp_iov *v, int n)
{
    struct msghdr m;
    ssize_t r;
    memset(&m, 0, sizeof m);
    m.msg_iov = v;
    m.msg_iovlen = n;
    r = recvmsg(fd, &m, MSG_DONTWAIT);
    return r < 0 ? fp_failed() : r;
}

/* Bytes taken by the kernel. Never blocks, never raises SIGPIPE. */
static inline int64_t fp_sendv(int fd, fp_iov *v, int n)
{
    struct msghdr m;
    ssize_t r;
    int flags = MSG_DONTWAIT;
#ifdef MSG_NOSIGNAL
    flags |= MSG_NOSIGNAL;
#endif
    memset(&m, 0, sizeof m);
    m.msg_iov = v;
    m.msg_iovlen = n;
    r = sendmsg(fd, &m, flags);
    return r < 0 ? fp_failed() : r;
}

/*
 * Open a file for reading: a descriptor, or a negative errno. Opening a pipe or a terminal does not block. A file that
 * has a lease (F_SETLEASE) is waited for, as open() without O_NONBLOCK does.
 */
static inline int fp_open(const char *path)
{
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == EWOULDBLOCK && stat(path, &s) == 0 && S_ISREG(s.st_mode))
        fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? (int)fp_failed() : fd;
}

/*
 * Make a file, for reading and writing: a descriptor, or a negative errno (EEXIST: there is one of that name; EINTR: a
 * signal has come first, which a network file system may have waited for).
 */
static inline int fp_create(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return fd < 0 ? (int)fp_failed() : fd;
}

/* Bytes of a regular file, or a negative errno: EISDIR for a directory, ESPIPE for anything else. */
static inline int64_t fp_file_size(int fd)
{
    struct stat s;
    if (fstat(fd, &s) < 0)
        return fp_failed();
    if (S_ISREG(s.st_mode))
        return (int64_t)s.st_size;
    return S_ISDIR(s.st_mode) ? -EISDIR : -ESPIPE;
}

static inline int64_t fp_pread(int fd, void *p, size_t n, int64_t at)
{
    ssize_t r;
    do
        r = pread(fd, p, n, (off_t)at);
    while (r < 0 && errno == EINTR);
    return r < 0 ? fp_failed() : r;
}

static inline int fp_write_all(int fd, const void *p, size_t n)
{
    const char *c = (const char *)p;
    while (n > 0) {
        ssize_t k = write(fd, c, n);
        if (k < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        c += k;
        n -= (size_t)k;
    }
    return 0;
}

/*
 * Wait for events (FP_IN, FP_OUT) of fd, and for wake (-1: none) to become readable, at most timeout
 * nanoseconds (negative: for ever). Errors and hang-ups of fd count as its events. Returns a mask, 0 when
 * the time is over.
 */
static inline int fp_poll(int fd, int events, int wake, int64_t timeout)
{
    struct pollfd p[2];
    int r, ready = 0;
    p[0].fd = fd;
    p[0].events = (short)(((events & FP_IN) ? POLLIN : 0) | ((events & FP_OUT) ? POLLOUT : 0));
    p[0].revents = 0;
    p[1].fd = wake;
    p[1].events = POLLIN;
    p[1].revents = 0;
#ifdef __linux__
    {
        struct timespec t;
        t.tv_sec = timeout < 0 ? 0 : (time_t)(timeout / 1000000000);
        t.tv_nsec = timeout < 0 ? 0 : (long)(timeout % 1000000000);
        r = ppoll(p, 2, timeout < 0 ? NULL : &t, NULL);
    }
#else
    {
        int64_t ms = timeout < 0 ? -1 : (timeout + 999999) / 1000000;
        r = poll(p, 2, ms > 0x7FFFFFFF ? 0x7FFFFFFF : (int)ms);
    }
#endif
    if (r < 0)
        return -errno;
    if (p[0].revents)
        ready |= events;
    if (p[1].revents)
        ready |= FP_WAKE;
    return ready;
}

/* Let other threads and processes have the CPU, if they want it. */
static inline void fp_yield(void)
{
    sched_yield();
}

/* A descriptor that wakes fp_poll: ends[0] is polled, ends[1] written (the same one where eventfd exists). */
static inline int fp_wake_new(int ends[2])
{
#ifdef __linux__
    ends[0] = ends[1] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return ends[0] < 0 ? -errno : 0;
#else
    int i;
    if (pipe(ends) < 0) {
        ends[0] = ends[1] = -1;
        return -errno;
    }
    for (i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
#endif
}

static inline void fp_wake_set(int fd)
{
    uint64_t one = 1;
#ifdef __linux__
    ssize_t r = write(fd, &one, sizeof one);
#else
    ssize_t r = write(fd, &one, 1);
#endif
    (void)r;
}

static inline void fp_wake_clear(int fd)
{
    uint64_t sink[8];
    ssize_t r = read(fd, sink, sizeof sink);
    (void)r;
}

/* TCP_QUICKACK is not sticky: the caller sets it again whenever it is about to wait. */
static inline void fp_quickack(int fd)
{
#ifdef TCP_QUICKACK
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
#else
    (void)fd;
#endif
}

/*
 * Hold back partial segments (on), or no longer. FP_CORK_PUSHES: the end sends what was held back. Where it is 0
 * (TCP_NOPUSH; macOS) the next write does, so the end must come before the last write.
 */
#if defined(TCP_CORK)
#define FP_CAN_CORK 1
#define FP_CORK_PUSHES 1
#define FP_CORK TCP_CORK
#elif defined(TCP_NOPUSH)
#define FP_CAN_CORK 1
#define FP_CORK_PUSHES 0
#define FP_CORK TCP_NOPUSH
#else
#define FP_CAN_CORK 0
#define FP_CORK_PUSHES 0
#endif

static inline void fp_cork(int fd, int on)
{
#ifdef FP_CORK
    setsockopt(fd, IPPROTO_TCP, FP_CORK, &on, sizeof on);
#else
    (void)fd;
    (void)on;
#endif
}

/*
 * The kernel's struct tcp_info as it is: the bytes written to p, as many as this kernel has (older ones have fewer),
 * at most n. Only Linux's: other systems lay it out in another way.
 */
static inline int fp_tcp_info(int fd, void *p, size_t n)
{
#if defined(__linux__) && defined(TCP_INFO)
    socklen_t length = (socklen_t)n;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, p, &length) < 0)
        return -errno;
    return (int)length;
#else
    (void)fd;
    (void)p;
    (void)n;
    return -ENOSYS;
#endif
}

#endif /* _WIN32 */

#endif /* FASTPDU_SYS_H */
