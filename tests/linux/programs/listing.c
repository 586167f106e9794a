/* The program's own sockets in /proc/net and by NETLINK_SOCK_DIAG, as `ss` and `netstat` read them. */
#include "check.h"
#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { ESTABLISHED = 1, CLOSED = 7, LISTENING = 10 };

static char *file(const char *path) {
    static char text[1 << 20];
    FILE *stream = fopen(path, "r");
    size_t len = stream ? fread(text, 1, sizeof text - 1, stream) : 0;
    if (stream)
        fclose(stream);
    text[len] = 0;
    return text;
}

static unsigned long inode_of(int fd) {
    struct stat status;
    char path[32], link[64] = "", expected[64];
    CHECK(fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(readlink(path, link, sizeof link - 1) > 0);
    snprintf(expected, sizeof expected, "socket:[%lu]", (unsigned long)status.st_ino);
    CHECK(strcmp(link, expected) == 0);
    return status.st_ino;
}

static int port_of(int fd) {
    struct sockaddr_in6 own;
    socklen_t len = sizeof own;
    CHECK(getsockname(fd, (void *)&own, &len) == 0);
    return ntohs(own.sin6_port);
}

/* The line of a socket, up to `fields` fields, with its inode left out. */
static void line_of(const char *path, unsigned long inode, char *to, size_t size, int *port) {
    *to = 0;
    for (char *line = strtok(file(path), "\n"); line; line = strtok(NULL, "\n")) {
        unsigned long long tail[2] = {0, 0};
        char local[64], remote[64], state[8], queues[32];
        unsigned uid, timeout;
        int found = sscanf(line, " %*d: %63s %63s %7s %31s %*s %*s %u %u %llu", local, remote, state,
                           queues, &uid, &timeout, tail);
        if (found == 7 && tail[0] == inode) {
            char *colon = strrchr(local, ':');
            *port = (int)strtol(colon + 1, NULL, 16);
            *colon = 0;
            snprintf(to, size, "%s %s %s uid %u", local, state, queues, uid);
        }
    }
}

static int listener(int family, int kind, int backlog) {
    int fd = socket(family, kind, 0);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (family == AF_INET)
        CHECK(bind(fd, (void *)&four, sizeof four) == 0);
    else
        CHECK(bind(fd, (void *)&six, sizeof six) == 0);
    if (kind == SOCK_STREAM)
        CHECK(listen(fd, backlog) == 0);
    return fd;
}

static void show(const char *path, int fd) {
    char line[256];
    int port = -1;
    line_of(path, inode_of(fd), line, sizeof line, &port);
    CHECK(port == port_of(fd));
    printf("%s: %s\n", path, line);
}

static int diag;
static char answer[1 << 20];

/* Asks for sockets and looks for one; its message, or NULL. */
static void *find(const void *question, size_t size, unsigned long inode, int *total) {
    struct {
        struct nlmsghdr header;
        char body[64];
    } request = {{NLMSG_LENGTH(size), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 3, 0}, {0}};
    static char kept[4096];
    memcpy(request.body, question, size);
    CHECK(send(diag, &request, request.header.nlmsg_len, 0) > 0);
    int found = 0, seen = 0;
    for (;;) {
        int left = recv(diag, answer, sizeof answer, 0);
        CHECK(left > 0);
        if (left <= 0)
            return NULL;
        for (struct nlmsghdr *each = (void *)answer; NLMSG_OK(each, left);
             each = NLMSG_NEXT(each, left)) {
            if (each->nlmsg_type == NLMSG_DONE) {
                *total = seen;
                return found ? kept : NULL;
            }
            CHECK(each->nlmsg_type == SOCK_DIAG_BY_FAMILY);
            struct inet_diag_msg *inet = NLMSG_DATA(each);
            struct unix_diag_msg *un = NLMSG_DATA(each);
            seen++;
            if (inode == (inet->idiag_family == AF_UNIX ? un->udiag_ino : inet->idiag_inode)) {
                memcpy(kept, each, each->nlmsg_len);
                found++;
            }
        }
    }
}

static struct inet_diag_msg *find_inet(int fd, int family, int protocol, unsigned states, int extension) {
    struct inet_diag_req_v2 question = {.sdiag_family = family,
                                        .sdiag_protocol = protocol,
                                        .idiag_ext = extension ? 1 << (extension - 1) : 0,
                                        .idiag_states = states};
    int total;
    struct nlmsghdr *found = find(&question, sizeof question, inode_of(fd), &total);
    return found ? NLMSG_DATA(found) : NULL;
}

static struct rtattr *attribute(void *kept, size_t fixed, int kind) {
    struct nlmsghdr *header = (void *)((char *)kept - NLMSG_HDRLEN);
    struct rtattr *each = (void *)((char *)kept + fixed);
    int left = header->nlmsg_len - NLMSG_LENGTH(fixed);
    for (; RTA_OK(each, left); each = RTA_NEXT(each, left))
        if (each->rta_type == kind)
            return each;
    return NULL;
}

static void internet(void) {
    int four = listener(AF_INET, SOCK_STREAM, 7), six = listener(AF_INET6, SOCK_STREAM, 9);
    int udp = listener(AF_INET, SOCK_DGRAM, 0), udp6 = listener(AF_INET6, SOCK_DGRAM, 0);
    show("/proc/net/tcp", four);
    show("/proc/net/tcp6", six);
    show("/proc/net/udp", udp);
    show("/proc/net/udp6", udp6);

    struct inet_diag_msg *found = find_inet(four, AF_INET, IPPROTO_TCP, 1 << LISTENING, 0);
    CHECK(found && found->idiag_state == LISTENING && found->idiag_wqueue == 7);
    CHECK(found && ntohs(found->id.idiag_sport) == port_of(four) && found->idiag_rqueue == 0);
    CHECK(found && found->id.idiag_src[0] == htonl(INADDR_LOOPBACK) && found->id.idiag_dport == 0);
    CHECK(found && found->idiag_uid == getuid());
    CHECK(!find_inet(four, AF_INET, IPPROTO_TCP, 1 << ESTABLISHED, 0));
    CHECK(!find_inet(four, AF_INET6, IPPROTO_TCP, ~0u, 0));
    found = find_inet(six, AF_INET6, IPPROTO_TCP, ~0u, 0);
    CHECK(found && found->idiag_wqueue == 9 && found->id.idiag_src[3] == 0);
    struct rtattr *only = found ? attribute(found, sizeof *found, INET_DIAG_SKV6ONLY) : NULL;
    CHECK(only && *(char *)RTA_DATA(only) == 0);
    found = find_inet(udp, AF_INET, IPPROTO_UDP, ~0u, 0);
    CHECK(found && found->idiag_state == CLOSED);

    /* A connection that waits to be accepted, then both of its ends, with bytes on their way. */
    struct sockaddr_in to;
    socklen_t len = sizeof to;
    CHECK(getsockname(four, (void *)&to, &len) == 0);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(!find_inet(client, AF_INET, IPPROTO_TCP, ~(1u << CLOSED), 0));
    CHECK(connect(client, (void *)&to, sizeof to) == 0);
    found = find_inet(four, AF_INET, IPPROTO_TCP, 1 << LISTENING, 0);
    CHECK(found && found->idiag_rqueue == 1);
    int server = accept(four, NULL, NULL);
    CHECK(write(client, "12345", 5) == 5);
    char byte;
    CHECK(recv(server, &byte, 1, MSG_PEEK) == 1);
    found = find_inet(server, AF_INET, IPPROTO_TCP, 1 << ESTABLISHED, INET_DIAG_INFO);
    CHECK(found && found->idiag_rqueue == 5 && ntohs(found->id.idiag_sport) == port_of(four));
    CHECK(found && ntohs(found->id.idiag_dport) == port_of(client));
    struct rtattr *info = found ? attribute(found, sizeof *found, INET_DIAG_INFO) : NULL;
    CHECK(info && ((struct tcp_info *)RTA_DATA(info))->tcpi_state == ESTABLISHED);
    show("/proc/net/tcp", server);
    show("/proc/net/tcp", client);
    close(client);
    close(server);
    unsigned long gone = inode_of(four);
    char line[256];
    int port = -1;
    close(four);
    line_of("/proc/net/tcp", gone, line, sizeof line, &port);
    CHECK(port == -1 && !*line);
    close(six);
    close(udp);
    close(udp6);
}

static void unix_line(int fd) {
    for (char *line = strtok(file("/proc/net/unix"), "\n"); line; line = strtok(NULL, "\n")) {
        unsigned references, protocol, flags, kind, state;
        unsigned long inode;
        char name[128] = "";
        if (sscanf(line, "%*s %x %x %x %x %x %lu %127s", &references, &protocol, &flags, &kind, &state,
                   &inode, name) >= 6 &&
            inode == inode_of(fd))
            printf("unix %08x %08x %08x %04x %02x %s\n", references, protocol, flags, kind, state, name);
    }
}

static void local(void) {
    int listening = socket(AF_UNIX, SOCK_STREAM, 0), datagrams = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "/tmp/listing-socket"};
    struct sockaddr_un hidden = {.sun_family = AF_UNIX, .sun_path = "\0listing-socket"};
    unlink(name.sun_path);
    CHECK(bind(listening, (void *)&name, sizeof name) == 0 && listen(listening, 5) == 0);
    CHECK(bind(datagrams, (void *)&hidden, sizeof(sa_family_t) + 15) == 0);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    unix_line(listening);
    unix_line(datagrams);
    unix_line(client);
    CHECK(connect(client, (void *)&name, sizeof name) == 0);
    unix_line(client);

    struct unix_diag_req question = {.sdiag_family = AF_UNIX,
                                     .udiag_states = 1 << LISTENING,
                                     .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_RQLEN};
    int total;
    struct nlmsghdr *found = find(&question, sizeof question, inode_of(listening), &total);
    struct unix_diag_msg *message = found ? NLMSG_DATA(found) : NULL;
    CHECK(message && message->udiag_state == LISTENING && message->udiag_type == SOCK_STREAM);
    struct rtattr *path = message ? attribute(message, sizeof *message, UNIX_DIAG_NAME) : NULL;
    CHECK(path && !strcmp(RTA_DATA(path), name.sun_path));
    struct rtattr *queues = message ? attribute(message, sizeof *message, UNIX_DIAG_RQLEN) : NULL;
    CHECK(queues && ((struct unix_diag_rqlen *)RTA_DATA(queues))->udiag_rqueue == 1);
    CHECK(queues && ((struct unix_diag_rqlen *)RTA_DATA(queues))->udiag_wqueue == 5);

    int server = accept(listening, NULL, NULL);
    question.udiag_states = 1 << ESTABLISHED;
    question.udiag_show = UDIAG_SHOW_PEER;
    found = find(&question, sizeof question, inode_of(client), &total);
    message = found ? NLMSG_DATA(found) : NULL;
    struct rtattr *peer = message ? attribute(message, sizeof *message, UNIX_DIAG_PEER) : NULL;
    CHECK(peer && *(unsigned *)RTA_DATA(peer) == inode_of(server));
    close(server);
    close(client);
    close(listening);
    close(datagrams);
    unlink(name.sun_path);
}

int main(void) {
    diag = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    CHECK(diag >= 0);
    internet();
    local();
    /* A family without sockets of its own. */
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } odd = {{sizeof odd, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 9, 0},
             {.sdiag_family = 77}};
    CHECK(send(diag, &odd, sizeof odd, 0) == sizeof odd);
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
    } refused;
    CHECK(recv(diag, &refused, sizeof refused, MSG_TRUNC) >= (int)sizeof refused);
    CHECK(refused.header.nlmsg_type == NLMSG_ERROR && refused.error.error != 0);
    CHECK(strstr(file("/proc/net/sockstat"), "sockets: used ") != NULL);
    return finish("listing");
}
