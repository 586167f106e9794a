/* The machine's interfaces: getifaddrs, rtnetlink, the ioctls, /proc/net and /sys/class/net agree,
 * natively and in the enclave. A line for each goes to the output, which must be the same. */
#include "check.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <dirent.h>

static char *file(const char *path) {
    static char text[1 << 16];
    FILE *stream = fopen(path, "r");
    size_t len = stream ? fread(text, 1, sizeof text - 1, stream) : 0;
    if (stream)
        fclose(stream);
    text[len] = 0;
    return text;
}

/* Many other tests make interfaces of their own for a while (veth, bridges): the loopback and those
 * that carry a default route stay. */
static int stays(const char *name) {
    if (strcmp(name, "lo") == 0)
        return 1;
    char line[32];
    snprintf(line, sizeof line, "\n%s\t00000000\t", name);
    return strstr(file("/proc/net/route"), line) != NULL;
}

static void by_getifaddrs(void) {
    struct ifaddrs *all = NULL, *each;
    CHECK(getifaddrs(&all) == 0);
    int loopbacks = 0;
    for (each = all; each; each = each->ifa_next) {
        if (!each->ifa_addr || !stays(each->ifa_name))
            continue;
        char text[64] = "?", mask[64] = "?";
        int family = each->ifa_addr->sa_family;
        if (family == AF_INET) {
            struct sockaddr_in *in = (void *)each->ifa_addr;
            inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
            in = (void *)each->ifa_netmask;
            inet_ntop(AF_INET, &in->sin_addr, mask, sizeof mask);
            loopbacks += in && !strcmp(text, "127.0.0.1") && !strcmp(mask, "255.0.0.0");
        } else if (family == AF_INET6) {
            struct sockaddr_in6 *in = (void *)each->ifa_addr;
            inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
        } else if (family == AF_PACKET) {
            struct sockaddr_ll *ll = (void *)each->ifa_addr;
            snprintf(text, sizeof text, "%d type %d len %d %02x..%02x", ll->sll_ifindex,
                     ll->sll_hatype, ll->sll_halen, ll->sll_addr[0], ll->sll_addr[5]);
        }
        printf("getifaddrs %s %d %s %s flags %x\n", each->ifa_name, family, text, mask,
               each->ifa_flags);
    }
    CHECK(loopbacks == 1);
    freeifaddrs(all);
}

static void by_names(void) {
    struct if_nameindex *all = if_nameindex();
    CHECK(all != NULL);
    for (struct if_nameindex *each = all; each && each->if_index; each++) {
        if (!stays(each->if_name))
            continue;
        char name[IF_NAMESIZE];
        printf("if_nameindex %u %s\n", each->if_index, each->if_name);
        CHECK(if_nametoindex(each->if_name) == each->if_index);
        CHECK(if_indextoname(each->if_index, name) && !strcmp(name, each->if_name));
    }
    if (all)
        if_freenameindex(all);
    CHECK(if_nametoindex("nosuch0") == 0 && errno == ENODEV);
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(0x7ffffff0, name) == NULL && errno == ENXIO);
}

static void show(const char *what, const struct ifreq *request) {
    const unsigned char *bytes = (const unsigned char *)&request->ifr_ifru;
    printf("ioctl %s %s", what, request->ifr_name);
    for (int at = 0; at < 24; at++)
        printf(" %02x", bytes[at]);
    printf("\n");
}

static void by_ioctls(void) {
    static const struct {
        const char *name;
        unsigned long request;
    } requests[] = {
        {"flags", SIOCGIFFLAGS},     {"address", SIOCGIFADDR}, {"peer", SIOCGIFDSTADDR},
        {"broadcast", SIOCGIFBRDADDR}, {"mask", SIOCGIFNETMASK}, {"mtu", SIOCGIFMTU},
        {"hardware", SIOCGIFHWADDR}, {"index", SIOCGIFINDEX},  {"queue", SIOCGIFTXQLEN},
        {"metric", SIOCGIFMETRIC},   {"map", SIOCGIFMAP},
    };
    static const char *more[] = {"nosuch0", "lo:1", ""};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq list[64], request;
    struct ifconf conf = {.ifc_len = sizeof list, .ifc_req = list};
    CHECK(ioctl(fd, SIOCGIFCONF, &conf) == 0);
    int count = conf.ifc_len / (int)sizeof list[0];
    CHECK(count > 0 && !strcmp(list[0].ifr_name, "lo"));
    for (int at = 0; at < count + 3; at++) {
        const char *name = at < count ? list[at].ifr_name : more[at - count];
        if (at < count && !stays(name))
            continue;
        if (at < count)
            show("list", &list[at]);
        for (size_t each = 0; each < sizeof requests / sizeof requests[0]; each++) {
            memset(&request, 0x11, sizeof request);
            strcpy(request.ifr_name, name);
            if (ioctl(fd, requests[each].request, &request) == 0)
                show(requests[each].name, &request);
            else
                printf("ioctl %s %s: %d\n", requests[each].name, name, errno);
        }
    }
    /* Room for less than one, and no room told: how much there would be. */
    conf.ifc_len = sizeof list[0] - 1;
    CHECK(ioctl(fd, SIOCGIFCONF, &conf) == 0 && conf.ifc_len == 0);
    close(fd);

    /* On sockets of other families the questions about addresses do not exist. */
    static const int families[] = {AF_UNIX, AF_INET6, AF_NETLINK};
    for (int at = 0; at < 3; at++) {
        fd = socket(families[at], families[at] == AF_NETLINK ? SOCK_RAW : SOCK_DGRAM, 0);
        strcpy(request.ifr_name, "lo");
        CHECK(ioctl(fd, SIOCGIFINDEX, &request) == 0 && request.ifr_ifindex == 1);
        request.ifr_ifindex = 1;
        CHECK(ioctl(fd, SIOCGIFNAME, &request) == 0 && !strcmp(request.ifr_name, "lo"));
        CHECK(ioctl(fd, SIOCGIFADDR, &request) == -1 && errno == ENOTTY);
        CHECK(ioctl(fd, SIOCGIFHWADDR, (void *)8) == -1 && errno == EFAULT);
        close(fd);
    }
}

static struct {
    struct nlmsghdr header;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
        struct rtmsg route;
        char room[256];
    };
} question;

static int netlink;
static char answer[1 << 16];

static void ask(int kind, int flags, int size) {
    static int sequence = 7;
    question.header.nlmsg_len = NLMSG_LENGTH(size);
    question.header.nlmsg_type = kind;
    question.header.nlmsg_flags = flags;
    question.header.nlmsg_seq = ++sequence;
    CHECK(send(netlink, &question, question.header.nlmsg_len, 0) == question.header.nlmsg_len);
}

/* One datagram; its length. Every message in it belongs to the question. */
static int take(void) {
    struct sockaddr_nl from;
    socklen_t len = sizeof from;
    int got = recvfrom(netlink, answer, sizeof answer, MSG_DONTWAIT, (void *)&from, &len);
    CHECK(got > 0 && len == sizeof from && from.nl_family == AF_NETLINK && from.nl_pid == 0);
    struct sockaddr_nl own;
    len = sizeof own;
    CHECK(getsockname(netlink, (void *)&own, &len) == 0 && own.nl_pid != 0);
    int left = got;
    for (struct nlmsghdr *each = (void *)answer; NLMSG_OK(each, left); each = NLMSG_NEXT(each, left))
        CHECK(each->nlmsg_seq == question.header.nlmsg_seq && each->nlmsg_pid == own.nl_pid);
    return got;
}

static int error_of(int got) {
    struct nlmsghdr *first = (void *)answer;
    struct nlmsgerr *error = NLMSG_DATA(first);
    CHECK(got >= (int)NLMSG_LENGTH(sizeof *error) && first->nlmsg_type == NLMSG_ERROR);
    CHECK(error->msg.nlmsg_type == question.header.nlmsg_type);
    return error->error;
}

/* Messages of a list up to its end. */
static int count(int kind) {
    int found = 0;
    for (;;) {
        int left = take();
        if (left <= 0)
            return -1;
        CHECK(left <= 32768);
        for (struct nlmsghdr *each = (void *)answer; NLMSG_OK(each, left);
             each = NLMSG_NEXT(each, left)) {
            CHECK(each->nlmsg_flags & NLM_F_MULTI);
            if (each->nlmsg_type == NLMSG_DONE)
                return found;
            found += each->nlmsg_type == kind;
        }
    }
}

static void by_rtnetlink(void) {
    netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct sockaddr_nl own;
    socklen_t len = sizeof own;
    CHECK(getsockname(netlink, (void *)&own, &len) == 0 && own.nl_pid == 0);
    memset(&question, 0, sizeof question);
    ask(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sizeof question.link);
    int links = count(RTM_NEWLINK);
    CHECK(links >= 1);
    ask(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sizeof question.address);
    CHECK(count(RTM_NEWADDR) >= 1);
    question.address.ifa_family = AF_INET;
    ask(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, sizeof question.address);
    CHECK(count(RTM_NEWADDR) >= 1);
    memset(&question, 0, sizeof question);
    ask(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, sizeof question.route);
    CHECK(count(RTM_NEWROUTE) >= 1);

    /* One interface, by index and by name; none. */
    question.link.ifi_index = 1;
    ask(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, sizeof question.link);
    take();
    struct nlmsghdr *first = (void *)answer;
    struct ifinfomsg *link = NLMSG_DATA(first);
    CHECK(first->nlmsg_type == RTM_NEWLINK && link->ifi_index == 1 && link->ifi_type == 772);
    CHECK(!(first->nlmsg_flags & NLM_F_MULTI));
    CHECK(error_of(take()) == 0);
    memset(&question, 0, sizeof question);
    struct rtattr *name = (void *)(question.room + sizeof question.link);
    name->rta_type = IFLA_IFNAME;
    name->rta_len = RTA_LENGTH(3);
    strcpy(RTA_DATA(name), "lo");
    ask(RTM_GETLINK, NLM_F_REQUEST, sizeof question.link + RTA_SPACE(3));
    take();
    CHECK(first->nlmsg_type == RTM_NEWLINK && link->ifi_index == 1);
    strcpy(RTA_DATA(name), "no");
    ask(RTM_GETLINK, NLM_F_REQUEST, sizeof question.link + RTA_SPACE(3));
    CHECK(error_of(take()) == -ENODEV);
    memset(&question, 0, sizeof question);
    ask(RTM_GETLINK, NLM_F_REQUEST, sizeof question.link);
    CHECK(error_of(take()) == -EINVAL);

    /* The way to an address. */
    question.route.rtm_family = AF_INET;
    question.route.rtm_dst_len = 32;
    struct rtattr *to = (void *)(question.room + sizeof question.route);
    to->rta_type = RTA_DST;
    to->rta_len = RTA_LENGTH(4);
    inet_pton(AF_INET, "127.1.2.3", RTA_DATA(to));
    ask(RTM_GETROUTE, NLM_F_REQUEST, sizeof question.route + RTA_SPACE(4));
    take();
    struct rtmsg *route = NLMSG_DATA(first);
    CHECK(first->nlmsg_type == RTM_NEWROUTE && route->rtm_type == RTN_LOCAL);

    /* What is no question is passed over, what is unknown refused; two questions in one datagram. */
    memset(&question, 0, sizeof question);
    ask(RTM_GETLINK, 0, sizeof question.link);
    CHECK(recv(netlink, answer, sizeof answer, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    ask(NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, 16);
    CHECK(error_of(take()) == 0);
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } two[2] = {{{sizeof two[0], RTM_GETLINK, NLM_F_REQUEST, 1, 0}, {.ifi_index = 1}},
                {{sizeof two[0], RTM_GETLINK, NLM_F_REQUEST, 2, 0}, {.ifi_index = 1}}};
    CHECK(send(netlink, two, sizeof two, 0) == sizeof two);
    for (unsigned at = 1; at <= 2; at++)
        CHECK(recv(netlink, answer, sizeof answer, MSG_DONTWAIT) > 0 && first->nlmsg_seq == at);

    CHECK(send(netlink, "", 0, 0) == -1 && errno == ENODATA);
    memset(&question, 0, sizeof question);
    ask(999, NLM_F_REQUEST, sizeof question.link);
    CHECK(error_of(take()) == -EOPNOTSUPP);
    ask(RTM_GETNEIGH, NLM_F_REQUEST, sizeof question.link);
    CHECK(error_of(take()) == -EINVAL);

    /* Peeking at the length leaves it there. */
    memset(&question, 0, sizeof question);
    question.link.ifi_index = 1;
    ask(RTM_GETLINK, NLM_F_REQUEST, sizeof question.link);
    int whole = recv(netlink, answer, 1, MSG_PEEK | MSG_TRUNC);
    CHECK(whole > 32 && recv(netlink, answer, sizeof answer, MSG_TRUNC) == whole);

    /* Ports are each socket's own. */
    int other = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
    len = sizeof own;
    CHECK(getsockname(netlink, (void *)&own, &len) == 0 && own.nl_pid == (unsigned)getpid());
    CHECK(bind(other, (void *)&own, sizeof own) == -1 && errno == EADDRINUSE);
    own.nl_pid = 0;
    CHECK(bind(other, (void *)&own, sizeof own) == 0);
    len = sizeof own;
    CHECK(getsockname(other, (void *)&own, &len) == 0 && (int)own.nl_pid < -4000);
    own.nl_pid = 4711;
    CHECK(bind(other, (void *)&own, sizeof own) == -1 && errno == EINVAL);
    CHECK(bind(other, (void *)&own, 4) == -1 && errno == EINVAL);
    close(other);
    close(netlink);
}

static void by_files(void) {
    struct ifreq request = {.ifr_name = "lo"};
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *each = all; each && each->if_index; each++) {
        static const char *const names[] = {"address", "addr_len", "broadcast", "flags", "ifindex",
                                            "iflink",  "mtu",      "operstate", "type",
                                            "tx_queue_len"};
        if (!stays(each->if_name))
            continue;
        for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
            char path[128];
            snprintf(path, sizeof path, "/sys/class/net/%s/%s", each->if_name, names[at]);
            printf("%s: %s", path, file(path));
        }
        char path[128];
        snprintf(path, sizeof path, "/sys/class/net/%s/statistics/rx_bytes", each->if_name);
        CHECK(strtoull(file(path), NULL, 10) > 0);
    }
    if (all)
        if_freenameindex(all);
    int found = 0;
    DIR *directory = opendir("/sys/class/net");
    for (struct dirent *each; directory && (each = readdir(directory));)
        found += strcmp(each->d_name, "lo") == 0;
    CHECK(found == 1);
    if (directory)
        closedir(directory);
    struct statfs status;
    CHECK(statfs("/sys/class/net", &status) == 0 && status.f_type == 0x62656572);
    CHECK(access("/sys/class/net/nosuch0", F_OK) == -1 && errno == ENOENT);
    CHECK(access("/sys/class/net/lo/nosuch", F_OK) == -1 && errno == ENOENT);

    CHECK(strstr(file("/proc/net/dev"), "\n    lo: ") != NULL);
    CHECK(strstr(file("/proc/self/net/dev"), "Inter-|   Receive  ") != NULL);
    CHECK(strstr(file("/proc/net/arp"), "IP address       HW type ") != NULL);
    char *line = strtok(file("/proc/net/if_inet6"), "\n");
    for (; line; line = strtok(NULL, "\n")) {
        char copy[256], *name = strrchr(line, ' ');
        snprintf(copy, sizeof copy, "if_inet6 %s\n", line);
        if (name && strcmp(name + 1, "lo") == 0)
            fputs(copy, stdout);
    }
    char routes[1 << 14];
    snprintf(routes, sizeof routes, "%s", file("/proc/net/route"));
    CHECK(strlen(routes) % 128 == 0 && !strncmp(routes, "Iface\tDestination\tGateway", 25));
    for (line = strtok(routes, "\n"); line; line = strtok(NULL, "\n"))
        if (strstr(line, "\t00000000\t"))
            printf("route %s\n", line);
    (void)request;
}

int main(void) {
    by_getifaddrs();
    by_names();
    by_ioctls();
    by_rtnetlink();
    by_files();
    return finish("interfaces");
}
