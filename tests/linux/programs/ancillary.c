/* Control messages of sockets that are the host's: what servers ask the kernel about datagrams. */
#include "check.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

static int on = 1;

/* A socket bound to the loopback address, with its address. */
static int bound(int family, struct sockaddr_storage *address, socklen_t *len) {
    int fd = socket(family, SOCK_DGRAM, 0);
    memset(address, 0, sizeof *address);
    address->ss_family = family;
    *len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if (family == AF_INET)
        ((struct sockaddr_in *)address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        ((struct sockaddr_in6 *)address)->sin6_addr = in6addr_loopback;
    CHECK(fd >= 0 && bind(fd, (void *)address, *len) == 0);
    CHECK(getsockname(fd, (void *)address, len) == 0);
    return fd;
}

/* The message of that level and type, or null; how many there are. */
static struct cmsghdr *find(struct msghdr *message, int level, int type, int *count) {
    struct cmsghdr *found = 0;
    *count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c), ++*count)
        if (c->cmsg_level == level && c->cmsg_type == type) found = c;
    return found;
}

static void internet_4(void) {
    struct sockaddr_storage address, from;
    socklen_t len;
    int to = bound(AF_INET, &address, &len), out = socket(AF_INET, SOCK_DGRAM, 0), count;
    CHECK(setsockopt(to, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
    CHECK(setsockopt(to, IPPROTO_IP, IP_RECVTTL, &on, sizeof on) == 0);
    CHECK(setsockopt(to, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);

    /* One message says with which TTL this datagram leaves, another from which address. */
    char data[] = "datagram", control[256] = {0};
    struct iovec vector = {data, sizeof data};
    struct msghdr message = {&address, len, &vector, 1, control, 0, 0};
    message.msg_controllen = CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in_pktinfo));
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IP, IP_TTL};
    *(int *)CMSG_DATA(c) = 17;
    c = CMSG_NXTHDR(&message, c);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(struct in_pktinfo)), IPPROTO_IP, IP_PKTINFO};
    struct in_pktinfo *source = (void *)CMSG_DATA(c);
    source->ipi_spec_dst.s_addr = inet_addr("127.0.0.9");
    CHECK(sendmsg(out, &message, 0) == sizeof data);

    char got[64] = {0};
    vector = (struct iovec){got, sizeof got};
    memset(control, 0, sizeof control);
    message = (struct msghdr){&from, sizeof from, &vector, 1, control, sizeof control, 0};
    CHECK(recvmsg(to, &message, 0) == sizeof data && !strcmp(got, data));
    CHECK(((struct sockaddr_in *)&from)->sin_addr.s_addr == inet_addr("127.0.0.9"));
    CHECK(message.msg_flags == 0);
    c = find(&message, IPPROTO_IP, IP_TTL, &count);
    CHECK(count == 3 && c && *(int *)CMSG_DATA(c) == 17);
    c = find(&message, IPPROTO_IP, IP_PKTINFO, &count);
    CHECK(c && ((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(c && ((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex == (int)if_nametoindex("lo"));
    c = find(&message, SOL_SOCKET, SCM_TIMESTAMP, &count);
    struct timeval now;
    gettimeofday(&now, 0);
    CHECK(c && labs(((struct timeval *)CMSG_DATA(c))->tv_sec - now.tv_sec) < 60);

    /* Too little room: what fits, and a flag. */
    CHECK(sendto(out, data, sizeof data, 0, (void *)&address, len) == sizeof data);
    message = (struct msghdr){0, 0, &vector, 1, control, CMSG_SPACE(sizeof(struct timeval)), 0};
    CHECK(recvmsg(to, &message, 0) == sizeof data);
    CHECK(message.msg_flags & MSG_CTRUNC);
    /* None: nothing is written there. */
    CHECK(sendto(out, data, sizeof data, 0, (void *)&address, len) == sizeof data);
    message = (struct msghdr){0, 0, &vector, 1, 0, 0, 0};
    CHECK(recvmsg(to, &message, 0) == sizeof data && message.msg_controllen == 0);

    /* Several datagrams, each with its own. */
    struct mmsghdr many[3];
    char controls[3][256], texts[3][16];
    struct iovec vectors[3];
    for (int i = 0; i < 3; i++) {
        vectors[i] = (struct iovec){texts[i], sizeof texts[i]};
        many[i].msg_hdr = (struct msghdr){0, 0, &vectors[i], 1, controls[i], sizeof controls[i], 0};
        int ttl = 30 + i;
        CHECK(setsockopt(out, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0);
        CHECK(sendto(out, &i, sizeof i, 0, (void *)&address, len) == sizeof i);
    }
    CHECK(recvmmsg(to, many, 3, MSG_WAITFORONE, 0) == 3);
    for (int i = 0; i < 3; i++) {
        c = find(&many[i].msg_hdr, IPPROTO_IP, IP_TTL, &count);
        CHECK(c && *(int *)CMSG_DATA(c) == 30 + i);
    }
    close(to);
    close(out);
}

static void internet_6(void) {
    struct sockaddr_storage address;
    socklen_t len;
    int to = bound(AF_INET6, &address, &len), out = socket(AF_INET6, SOCK_DGRAM, 0), count;
    CHECK(setsockopt(to, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on) == 0);
    CHECK(setsockopt(to, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof on) == 0);
    char data[] = "six", control[256] = {0};
    struct iovec vector = {data, sizeof data};
    struct msghdr message = {&address, len, &vector, 1, control, CMSG_SPACE(sizeof(int)), 0};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), IPPROTO_IPV6, IPV6_TCLASS};
    *(int *)CMSG_DATA(c) = 0x28;
    CHECK(sendmsg(out, &message, 0) == sizeof data);
    memset(control, 0, sizeof control);
    message = (struct msghdr){0, 0, &vector, 1, control, sizeof control, 0};
    CHECK(recvmsg(to, &message, 0) == sizeof data);
    c = find(&message, IPPROTO_IPV6, IPV6_TCLASS, &count);
    CHECK(c && *(int *)CMSG_DATA(c) == 0x28);
    c = find(&message, IPPROTO_IPV6, IPV6_PKTINFO, &count);
    CHECK(c && !memcmp(CMSG_DATA(c), &in6addr_loopback, sizeof in6addr_loopback));
    close(to);
    close(out);
}

/* Only whole messages of the right levels go out. */
static void wrong(void) {
    struct sockaddr_storage address;
    socklen_t len;
    int to = bound(AF_INET, &address, &len), pair[2];
    char data[] = "x", control[64] = {0};
    struct iovec vector = {data, sizeof data};
    struct msghdr message = {&address, len, &vector, 1, control, sizeof control, 0};
    struct cmsghdr *c = (void *)control;
    *c = (struct cmsghdr){CMSG_LEN(4), IPPROTO_IP, 9999};
    message.msg_controllen = CMSG_SPACE(4);
    CHECK(sendmsg(to, &message, 0) == -1 && errno == EINVAL);
    *c = (struct cmsghdr){CMSG_LEN(sizeof control * 2), IPPROTO_IP, IP_TTL};
    CHECK(sendmsg(to, &message, 0) == -1 && errno == EINVAL);
    *c = (struct cmsghdr){3, IPPROTO_IP, IP_TTL};
    CHECK(sendmsg(to, &message, 0) == -1 && errno == EINVAL);
    *c = (struct cmsghdr){CMSG_LEN(4), SOL_SOCKET, 9999};
    CHECK(sendmsg(to, &message, 0) == -1 && errno == EINVAL);
    /* UNIX sockets look at their own level only. */
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    message.msg_name = 0;
    message.msg_namelen = 0;
    CHECK(sendmsg(pair[0], &message, 0) == -1 && errno == EINVAL);
    *c = (struct cmsghdr){CMSG_LEN(4), IPPROTO_IP, IP_TTL};
    CHECK(sendmsg(pair[0], &message, 0) == sizeof data);
}

/* Interfaces can be asked for through any socket. */
static void interfaces(void) {
    int families[] = {AF_INET, AF_INET6, AF_UNIX};
    for (int i = 0; i < 3; i++) {
        struct ifreq request = {0};
        int fd = socket(families[i], SOCK_DGRAM, 0);
        strcpy(request.ifr_name, "lo");
        CHECK(ioctl(fd, SIOCGIFINDEX, &request) == 0 && request.ifr_ifindex > 0);
        CHECK(ioctl(fd, SIOCGIFFLAGS, &request) == 0 && request.ifr_flags & IFF_LOOPBACK);
        strcpy(request.ifr_name, "absent0");
        CHECK(ioctl(fd, SIOCGIFINDEX, &request) == -1 && errno == ENODEV);
        close(fd);
    }
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(if_nametoindex("lo"), name) && !strcmp(name, "lo"));
}

int main(void) {
    internet_4();
    internet_6();
    wrong();
    interfaces();
    return finish("ancillary");
}
