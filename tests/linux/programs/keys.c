/* The kernel's keyrings: types, permissions, links, searches, inheritance, ends, quotas, /proc. */
#include "check.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/keyctl.h>
#include <pthread.h>

/* Of linux/key.h, which no program sees. */
#define KEY_POS_VIEW 0x01000000
#define KEY_POS_WRITE 0x04000000
#define KEY_POS_SEARCH 0x08000000
#define KEY_POS_LINK 0x10000000
#define KEY_POS_SETATTR 0x20000000
#define KEY_POS_ALL 0x3f000000
#define KEY_USR_SETATTR 0x00200000
#define KEY_USR_ALL 0x003f0000
#define KEY_GRP_READ 0x00000200
#define KEY_OTH_VIEW 0x00000001

/* Nobody's: quotas of users that have keys already would be in the way. */
#define USER 48151
#define OTHER 48152

static long add(const char *type, const char *name, const char *payload, long ring)
{
    return syscall(SYS_add_key, type, name, payload, payload ? strlen(payload) : 0, ring);
}

static long control(int operation, long a, long b, long c, long d)
{
    return syscall(SYS_keyctl, operation, a, b, c, d);
}

static long request(const char *type, const char *name, const char *callout, long ring)
{
    return syscall(SYS_request_key, type, name, callout, ring);
}

static long number_of(long ring) { return control(KEYCTL_GET_KEYRING_ID, ring, 0, 0, 0); }
static long join(const char *name)
{
    return control(KEYCTL_JOIN_SESSION_KEYRING, (long)name, 0, 0, 0);
}
static long permit(long key, unsigned mask) { return control(KEYCTL_SETPERM, key, mask, 0, 0); }
static long link_to(long key, long ring) { return control(KEYCTL_LINK, key, ring, 0, 0); }
static long unlink_from(long key, long ring) { return control(KEYCTL_UNLINK, key, ring, 0, 0); }
static long search(long ring, const char *type, const char *name, long into)
{
    return control(KEYCTL_SEARCH, ring, (long)type, (long)name, into);
}
static long length(long key) { return control(KEYCTL_READ, key, 0, 0, 0); }

/* Whether a key has this payload. */
static int holds(long key, const char *payload)
{
    char bytes[64] = {0};
    long size = control(KEYCTL_READ, key, (long)bytes, sizeof bytes, 0);
    return size == (long)strlen(payload) && strcmp(bytes, payload) == 0;
}

/* Whether KEYCTL_DESCRIBE says so. */
static int is_described(long key, const char *text)
{
    char described[256] = {0};
    long size = control(KEYCTL_DESCRIBE, key, (long)described, sizeof described, 0);
    if (size != (long)strlen(text) + 1 || strcmp(described, text) != 0) {
        printf("described as %s\n", described);
        return 0;
    }
    return 1;
}

#define REFUSED(call, error) CHECK((call) == -1 && errno == (error))
/* What nothing holds any more Linux takes away in the background. */
#define GONE(key) CHECK(length(key) == -1 && (errno == ENOKEY || errno == EACCES))

static void types(void)
{
    static char large[33000];
    memset(large, 'x', sizeof large - 1);
    CHECK(join(NULL) > 0);
    long session = KEY_SPEC_SESSION_KEYRING;
    long key = add("user", "a", "secret", session);
    CHECK(key > 0 && holds(key, "secret") && is_described(key, "user;0;0;3f010000;a"));
    CHECK(add("user", "a", "other", session) == key && holds(key, "other"));
    CHECK(control(KEYCTL_UPDATE, key, (long)"third", 5, 0) == 0 && holds(key, "third"));
    char some[3] = {'-', '-', '-'};
    CHECK(control(KEYCTL_READ, key, (long)some, 3, 0) == 5 && memcmp(some, "---", 3) == 0);
    REFUSED(control(KEYCTL_UPDATE, key, (long)large, 4097, 0), EINVAL);
    REFUSED(control(KEYCTL_UPDATE, key, 0, 0, 0), EINVAL);
    REFUSED(control(KEYCTL_UPDATE, session, 0, 0, 0), EOPNOTSUPP);
    long logon = add("logon", "service:a", "secret", session);
    CHECK(is_described(logon, "logon;0;0;3d010000;service:a"));
    REFUSED(length(logon), EOPNOTSUPP);
    REFUSED(add("logon", "service", "secret", session), EINVAL);
    REFUSED(add("logon", ":a", "secret", session), EINVAL);
    long ring = add("keyring", "r", NULL, session);
    CHECK(is_described(ring, "keyring;0;0;3f010000;r"));
    CHECK(add("keyring", "r", NULL, session) != ring);
    GONE(ring);
    REFUSED(add("keyring", "r", "x", session), EINVAL);
    REFUSED(add("keyring", ".r", NULL, session), EPERM);
    REFUSED(add(".user", "r", "x", session), EPERM);
    REFUSED(add("", "r", "x", session), EINVAL);
    REFUSED(add("a_type_with_a_name_of_32_letters", "r", "x", session), EINVAL);
    REFUSED(add("nothing", "r", "x", session), ENODEV);
    REFUSED(add("user", "", "x", session), EINVAL);
    REFUSED(add("user", NULL, "x", session), EINVAL);
    REFUSED(add("user", "r", NULL, session), EINVAL);
    REFUSED(syscall(SYS_add_key, "user", "r", NULL, 5, session), EFAULT);
    REFUSED(syscall(SYS_add_key, "user", "r", large, 1 << 20, session), EINVAL);
    REFUSED(add("user", "r", large, session), EINVAL);
    large[4096] = 0;
    REFUSED(add("user", large, "x", session), EINVAL);
    large[4095] = 0;
    CHECK(add("user", large, "x", session) > 0);
    REFUSED(add("user", "r", "x", key), ENOTDIR);
    long big = add("big_key", "b", "big", session);
    if (big > 0)
        CHECK(holds(big, "big"));
    else
        CHECK(errno == ENODEV);
    long own = add("user", "own", "x", KEY_SPEC_USER_KEYRING);
    CHECK(own > 0 && search(KEY_SPEC_USER_SESSION_KEYRING, "user", "own", 0) == own);
    CHECK(unlink_from(own, KEY_SPEC_USER_KEYRING) == 0);
}

static void special_keyrings(void)
{
    CHECK(join(NULL) > 0);
    REFUSED(number_of(KEY_SPEC_THREAD_KEYRING), ENOKEY);
    REFUSED(number_of(KEY_SPEC_PROCESS_KEYRING), ENOKEY);
    CHECK(control(KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 1, 0, 0) > 0);
    CHECK(is_described(KEY_SPEC_THREAD_KEYRING, "keyring;0;0;3f010000;_tid"));
    CHECK(add("user", "a", "x", KEY_SPEC_PROCESS_KEYRING) > 0);
    CHECK(is_described(KEY_SPEC_PROCESS_KEYRING, "keyring;0;0;3f010000;_pid"));
    CHECK(is_described(KEY_SPEC_SESSION_KEYRING, "keyring;0;0;3f030000;_ses"));
    CHECK(is_described(KEY_SPEC_USER_KEYRING, "keyring;0;65534;1f3f0000;_uid.0"));
    CHECK(is_described(KEY_SPEC_USER_SESSION_KEYRING, "keyring;0;65534;1f3f0000;_uid_ses.0"));
    REFUSED(number_of(KEY_SPEC_GROUP_KEYRING), EINVAL);
    REFUSED(number_of(KEY_SPEC_REQKEY_AUTH_KEY), ENOKEY);
    REFUSED(number_of(KEY_SPEC_REQUESTOR_KEYRING), ENOKEY);
    REFUSED(number_of(0), EINVAL);
    REFUSED(number_of(-99), EINVAL);
    /* A named session is found again by who may search it. */
    long named = join("keys-of-a-test");
    CHECK(named > 0 && is_described(named, "keyring;0;0;3f130000;keys-of-a-test"));
    CHECK(permit(named, KEY_POS_ALL | KEY_USR_ALL) == 0);
    CHECK(join("keys-of-a-test") == 0);
    CHECK(link_to(named, KEY_SPEC_PROCESS_KEYRING) == 0);
    CHECK(join(NULL) > 0 && join("keys-of-a-test") == named);
    REFUSED(join(".a"), EPERM);
    int before[] = {0, 1, 2, 3, 4, 5, 7};
    for (int i = 0; i < 7; i++) {
        CHECK(control(KEYCTL_SET_REQKEY_KEYRING, before[i], 0, 0, 0) == before[i ? i - 1 : 0]);
        CHECK(control(KEYCTL_SET_REQKEY_KEYRING, -1, 0, 0, 0) == before[i]);
    }
    REFUSED(control(KEYCTL_SET_REQKEY_KEYRING, 6, 0, 0, 0), EINVAL);
    REFUSED(control(KEYCTL_SET_REQKEY_KEYRING, 8, 0, 0, 0), EINVAL);
    CHECK(control(KEYCTL_SET_REQKEY_KEYRING, 0, 0, 0, 0) == 7);
    long lasting = control(KEYCTL_GET_PERSISTENT, -1, KEY_SPEC_PROCESS_KEYRING, 0, 0);
    if (lasting > 0) {
        CHECK(is_described(lasting, "keyring;0;65534;1f030000;_persistent.0"));
        CHECK(control(KEYCTL_GET_PERSISTENT, 0, named, 0, 0) == lasting);
        REFUSED(control(KEYCTL_GET_PERSISTENT, 0, add("user", "k", "x", named), 0, 0), ENOTDIR);
    } else {
        CHECK(errno == EOPNOTSUPP);
    }
}

static void become_a_user(void)
{
    CHECK(setgroups(0, NULL) == 0 && setresgid(USER, USER, USER) == 0);
    CHECK(setresuid(USER, USER, USER) == 0);
}

static void permissions(void)
{
    CHECK(join(NULL) > 0);
    long key = add("user", "a", "secret", KEY_SPEC_SESSION_KEYRING);
    unsigned all = KEY_POS_ALL | KEY_USR_ALL;
    unsigned rights[] = {KEY_POS_VIEW, KEY_POS_WRITE, KEY_POS_LINK, KEY_POS_SETATTR};
    for (int i = 0; i < 4; i++) {
        /* The owner's rights are those without possession, and count too. */
        CHECK(permit(key, KEY_POS_SEARCH | KEY_POS_SETATTR | rights[i]) == 0);
        CHECK((control(KEYCTL_DESCRIBE, key, 0, 0, 0) > 0) == (i == 0));
        CHECK((control(KEYCTL_UPDATE, key, (long)"x", 1, 0) == 0) == (i == 1));
        CHECK((link_to(key, KEY_SPEC_PROCESS_KEYRING) == 0) == (i == 2));
    }
    /* To possess is to read. */
    CHECK(permit(key, KEY_POS_SEARCH | KEY_POS_SETATTR) == 0 && holds(key, "x"));
    REFUSED(permit(key, 1u << 31), EINVAL);
    REFUSED(permit(key, 1u << 6), EINVAL);
    CHECK(permit(key, KEY_USR_ALL) == 0 && holds(key, "x"));
    CHECK(permit(key, KEY_USR_SETATTR) == 0);
    REFUSED(length(key), EACCES);
    CHECK(permit(key, all) == 0 && holds(key, "x"));
    CHECK(control(KEYCTL_CHOWN, key, -1, -1, 0) == 0);
    CHECK(control(KEYCTL_CHOWN, key, 0, getgid(), 0) == 0);
    /* A container's root has no CAP_SYS_ADMIN, the machine's has. */
    CHECK(permit(key, KEY_POS_ALL | KEY_OTH_VIEW | KEY_GRP_READ) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        become_a_user();
        /* Possessed still, through the session. */
        CHECK(holds(key, "x"));
        REFUSED(permit(key, all), EACCES);
        REFUSED(control(KEYCTL_CHOWN, key, USER, -1, 0), EACCES);
        long session = number_of(KEY_SPEC_SESSION_KEYRING);
        CHECK(session > 0 && join(NULL) > 0);
        CHECK(is_described(KEY_SPEC_SESSION_KEYRING, "keyring;48151;48151;3f030000;_ses"));
        REFUSED(length(key), EACCES);
        CHECK(control(KEYCTL_DESCRIBE, key, 0, 0, 0) > 0);
        REFUSED(control(KEYCTL_REVOKE, key, 0, 0, 0), EACCES);
        REFUSED(control(KEYCTL_INVALIDATE, key, 0, 0, 0), EACCES);
        REFUSED(control(KEYCTL_SET_TIMEOUT, key, 1, 0, 0), EACCES);
        REFUSED(add("user", "a", "x", session), EACCES);
        REFUSED(control(KEYCTL_CLEAR, session, 0, 0, 0), EACCES);
        REFUSED(control(KEYCTL_GET_PERSISTENT, OTHER, KEY_SPEC_SESSION_KEYRING, 0, 0), EPERM);
        CHECK(is_described(KEY_SPEC_USER_KEYRING, "keyring;48151;65534;1f3f0000;_uid.48151"));
        fflush(stdout);
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void links(void)
{
    CHECK(join(NULL) > 0);
    long session = KEY_SPEC_SESSION_KEYRING, rings[9];
    rings[0] = add("keyring", "top", NULL, session);
    for (int i = 1; i < 9; i++) rings[i] = add("keyring", "below", NULL, rings[i - 1]);
    /* The eighth is beyond what is searched: not possessed. */
    CHECK(rings[7] > 0);
    REFUSED(rings[8], EACCES);
    long aside = add("keyring", "aside", NULL, session);
    REFUSED(link_to(rings[0], rings[0]), EDEADLK);
    REFUSED(link_to(rings[0], rings[6]), EDEADLK);
    REFUSED(link_to(rings[0], aside), ELOOP);
    CHECK(link_to(rings[1], aside) == 0);
    CHECK(unlink_from(rings[1], aside) == 0);
    REFUSED(unlink_from(rings[1], aside), ENOENT);
    REFUSED(link_to(rings[1], add("user", "k", "x", session)), ENOTDIR);
    long key = add("user", "a", "1", rings[2]), twin = add("user", "a", "2", aside);
    CHECK(search(rings[0], "user", "a", 0) == key && search(aside, "user", "a", 0) == twin);
    /* The own keyring goes before those below. */
    CHECK(search(session, "user", "k", 0) > 0);
    REFUSED(search(session, "user", "nothing", 0), ENOKEY);
    REFUSED(search(session, "nothing", "a", 0), ENOKEY);
    REFUSED(search(key, "user", "a", 0), ENOTDIR);
    CHECK(search(rings[0], "user", "a", session) == key);
    CHECK(search(session, "user", "a", 0) == key);
    CHECK(link_to(twin, session) == 0 && search(session, "user", "a", 0) == twin);
    CHECK(request("user", "a", NULL, 0) == twin);
    /* Moved, and not onto another. */
    REFUSED(control(KEYCTL_MOVE, key, rings[2], session, KEYCTL_MOVE_EXCL), EEXIST);
    REFUSED(control(KEYCTL_MOVE, key, rings[2], session, 2), EINVAL);
    CHECK(control(KEYCTL_MOVE, key, rings[2], session, 0) == 0);
    CHECK(length(rings[2]) == 4 && search(session, "user", "a", 0) == key);
    REFUSED(control(KEYCTL_MOVE, key, rings[2], session, 0), ENOENT);
    CHECK(control(KEYCTL_MOVE, key, session, session, KEYCTL_MOVE_EXCL) == 0);
    unsigned numbers[8];
    CHECK(control(KEYCTL_READ, rings[1], (long)numbers, sizeof numbers, 0) == 4);
    CHECK(numbers[0] == (unsigned)rings[2]);
    CHECK(control(KEYCTL_CLEAR, rings[1], 0, 0, 0) == 0 && length(rings[1]) == 0);
    REFUSED(control(KEYCTL_CLEAR, key, 0, 0, 0), ENOTDIR);
    /* No more links. */
    CHECK(add("user", "r", "x", aside) > 0);
    REFUSED(control(KEYCTL_RESTRICT_KEYRING, aside, 0, (long)"x", 0), EINVAL);
    REFUSED(control(KEYCTL_RESTRICT_KEYRING, aside, (long)"nothing", (long)"x", 0), ENOKEY);
    REFUSED(control(KEYCTL_RESTRICT_KEYRING, aside, (long)"user", (long)"x", 0), ENOENT);
    REFUSED(control(KEYCTL_RESTRICT_KEYRING, key, 0, 0, 0), ENOTDIR);
    CHECK(control(KEYCTL_RESTRICT_KEYRING, aside, 0, 0, 0) == 0);
    REFUSED(control(KEYCTL_RESTRICT_KEYRING, aside, 0, 0, 0), EEXIST);
    REFUSED(add("user", "r", "y", aside), EPERM);
    REFUSED(link_to(key, aside), EPERM);
    CHECK(unlink_from(twin, aside) == 0);
}

static void *in_a_thread(void *process)
{
    REFUSED(number_of(KEY_SPEC_THREAD_KEYRING), ENOKEY);
    CHECK(number_of(KEY_SPEC_PROCESS_KEYRING) == *(long *)process);
    CHECK(control(KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 1, 0, 0) > 0);
    long session = number_of(KEY_SPEC_SESSION_KEYRING);
    CHECK(join(NULL) != session);
    return NULL;
}

static void inheritance(void)
{
    long session = join(NULL), process, own;
    CHECK(add("user", "s", "x", KEY_SPEC_SESSION_KEYRING) > 0);
    process = control(KEYCTL_GET_KEYRING_ID, KEY_SPEC_PROCESS_KEYRING, 1, 0, 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, in_a_thread, &process) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(number_of(KEY_SPEC_SESSION_KEYRING) == session);
    own = add("user", "t", "x", KEY_SPEC_THREAD_KEYRING);
    CHECK(request("user", "t", NULL, 0) == own);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK(number_of(KEY_SPEC_SESSION_KEYRING) == session);
        REFUSED(number_of(KEY_SPEC_THREAD_KEYRING), ENOKEY);
        REFUSED(number_of(KEY_SPEC_PROCESS_KEYRING), ENOKEY);
        CHECK(request("user", "s", NULL, 0) > 0);
        REFUSED(request("user", "t", NULL, 0), ENOKEY);
        CHECK(add("user", "p", "x", KEY_SPEC_PROCESS_KEYRING) > 0);
        CHECK(add("user", "t", "x", KEY_SPEC_THREAD_KEYRING) > 0);
        fflush(stdout);
        char name[32];
        snprintf(name, sizeof name, "%ld", failures ? -1 : session);
        execl("/proc/self/exe", "keys", "executed", name, NULL);
        _exit(3);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* A child's session for its parent, which has one thread again. */
    child = fork();
    if (child == 0) {
        CHECK(join(NULL) > 0 && add("user", "given", "x", KEY_SPEC_SESSION_KEYRING) > 0);
        CHECK(control(KEYCTL_SESSION_TO_PARENT, 0, 0, 0, 0) == 0);
        fflush(stdout);
        _exit(failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(number_of(KEY_SPEC_SESSION_KEYRING) != session);
    CHECK(request("user", "given", NULL, 0) > 0);
}

/* After execve. */
static int executed(const char *session)
{
    CHECK(number_of(KEY_SPEC_SESSION_KEYRING) == atol(session));
    REFUSED(number_of(KEY_SPEC_THREAD_KEYRING), ENOKEY);
    REFUSED(number_of(KEY_SPEC_PROCESS_KEYRING), ENOKEY);
    fflush(stdout);
    return failures != 0;
}

static void ends(void)
{
    CHECK(join(NULL) > 0);
    long session = KEY_SPEC_SESSION_KEYRING;
    long key = add("user", "a", "x", session);
    CHECK(control(KEYCTL_REVOKE, key, 0, 0, 0) == 0);
    REFUSED(length(key), EKEYREVOKED);
    REFUSED(control(KEYCTL_REVOKE, key, 0, 0, 0), EKEYREVOKED);
    REFUSED(search(session, "user", "a", 0), EKEYREVOKED);
    REFUSED(request("user", "a", NULL, 0), EKEYREVOKED);
    long next = add("user", "a", "y", session);
    CHECK(next > 0 && next != key && holds(next, "y"));
    CHECK(control(KEYCTL_INVALIDATE, next, 0, 0, 0) == 0);
    GONE(next);
    for (int i = 0; i < 200 && length(session) != 0; i++) usleep(10000);
    CHECK(length(session) == 0);
    long ring = add("keyring", "r", NULL, session), inner = add("user", "i", "x", ring);
    CHECK(control(KEYCTL_REVOKE, ring, 0, 0, 0) == 0);
    REFUSED(add("user", "i", "x", ring), EKEYREVOKED);
    GONE(inner);
    key = add("user", "t", "x", session);
    long kept = add("user", "k", "x", session), negative;
    CHECK(control(KEYCTL_SET_TIMEOUT, key, 1, 0, 0) == 0);
    CHECK(control(KEYCTL_SET_TIMEOUT, kept, 1, 0, 0) == 0);
    CHECK(control(KEYCTL_SET_TIMEOUT, kept, 0, 0, 0) == 0);
    CHECK(holds(key, "x"));
    sleep(2);
    REFUSED(length(key), EKEYEXPIRED);
    REFUSED(search(session, "user", "t", 0), EKEYEXPIRED);
    REFUSED(request("user", "t", NULL, 0), ENOKEY);
    CHECK(holds(kept, "x"));
    CHECK(add("user", "t", "again", session) == key && holds(key, "again"));
    /* Without /sbin/request-key nobody makes keys; that is known from then on. */
    if (access("/sbin/request-key", F_OK) != 0) {
        REFUSED(request("user", "made", NULL, session), ENOKEY);
        REFUSED(request("user", "made", "please", session), ENOENT);
        REFUSED(request("user", "made", "please", session), ENOKEY);
        REFUSED(search(session, "user", "made", 0), ENOKEY);
        REFUSED(request("keyring", "made", "please", session), EPERM);
        CHECK((negative = add("user", "made", "x", session)) > 0);
        CHECK(request("user", "made", NULL, session) == negative);
    }
    REFUSED(control(KEYCTL_INSTANTIATE, key, (long)"x", 1, 0), EPERM);
    REFUSED(control(KEYCTL_NEGATE, key, 1, 0, 0), EPERM);
    REFUSED(control(KEYCTL_REJECT, key, 1, ENOKEY, 0), EPERM);
    REFUSED(control(KEYCTL_REJECT, key, 1, 0, 0), EINVAL);
    REFUSED(control(KEYCTL_ASSUME_AUTHORITY, key, 0, 0, 0), ENOKEY);
    REFUSED(control(KEYCTL_ASSUME_AUTHORITY, -1, 0, 0, 0), EINVAL);
    CHECK(control(KEYCTL_ASSUME_AUTHORITY, 0, 0, 0, 0) == 0);
    REFUSED(control(1000, 0, 0, 0, 0), EOPNOTSUPP);
    unsigned char capabilities[8];
    memset(capabilities, 0xff, sizeof capabilities);
    CHECK(control(KEYCTL_CAPABILITIES, (long)capabilities, 8, 0, 0) == 2);
    CHECK(capabilities[0] & KEYCTL_CAPS0_MOVE && capabilities[2] == 0 && capabilities[7] == 0);
}

static unsigned long setting(const char *name)
{
    char path[64], text[32] = {0};
    snprintf(path, sizeof path, "/proc/sys/kernel/keys/%s", name);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    return strtoul(text, NULL, 10);
}

/* What /proc/key-users says of a user: keys and bytes in use. */
static int usage(unsigned user, unsigned long *keys, unsigned long *bytes)
{
    char line[128];
    unsigned of;
    int found = 0;
    FILE *users = fopen("/proc/key-users", "r");
    CHECK(users != NULL);
    while (users && !found && fgets(line, sizeof line, users))
        found = sscanf(line, "%u: %*u %*u/%*u %lu/%*u %lu/%*u", &of, keys, bytes) == 3 && of == user;
    if (users) fclose(users);
    return found;
}

static void quotas(void)
{
    static char payload[40000];
    unsigned long keys, bytes, most = setting("maxkeys"), most_bytes = setting("maxbytes");
    become_a_user();
    CHECK(join(NULL) > 0);
    CHECK(usage(USER, &keys, &bytes));
    unsigned long before = bytes;
    long session = KEY_SPEC_SESSION_KEYRING;
    CHECK(add("user", "abc", "12345", session) > 0);
    unsigned long now;
    CHECK(usage(USER, &keys, &now));
    /* The name with its null, the payload, the link. */
    CHECK(now == before + 4 + 5 + 4);
    memset(payload, 'x', sizeof payload);
    unsigned long room = most_bytes - now - 2 - 4;
    if (room < 32767) {
        REFUSED(syscall(SYS_add_key, "user", "b", payload, room + 1, session), EDQUOT);
        long key = syscall(SYS_add_key, "user", "b", payload, room, session);
        CHECK(key > 0 && usage(USER, &keys, &now) && now == most_bytes);
        REFUSED(add("user", "c", "x", session), EDQUOT);
        CHECK(control(KEYCTL_UPDATE, key, (long)"x", 1, 0) == 0);
    }
    CHECK(usage(USER, &keys, &now));
    char name[32];
    for (; keys < most; keys++) {
        snprintf(name, sizeof name, "key%lu", keys);
        CHECK(add("user", name, "x", session) > 0);
    }
    REFUSED(add("user", "one more", "x", session), EDQUOT);
    /* Keyrings of a thread's own are made in any case. */
    CHECK(control(KEYCTL_GET_KEYRING_ID, KEY_SPEC_THREAD_KEYRING, 1, 0, 0) > 0);
    REFUSED(add("user", "one more", "x", KEY_SPEC_THREAD_KEYRING), EDQUOT);
    CHECK(control(KEYCTL_CLEAR, session, 0, 0, 0) == 0);
    for (int i = 0; i < 200 && usage(USER, &keys, &now) && now > before + 100; i++) usleep(10000);
    CHECK(now <= before + 100);
}

/* Whether /proc/keys has a line with all that. */
static int is_listed(long key, const char *flags, const char *text)
{
    char line[256], start[32];
    int found = 0;
    FILE *keys = fopen("/proc/keys", "r");
    CHECK(keys != NULL);
    snprintf(start, sizeof start, "%08lx %s ", key, flags);
    while (keys && !found && fgets(line, sizeof line, keys))
        found = strncmp(line, start, strlen(start)) == 0 && strstr(line, text);
    if (keys) fclose(keys);
    return found;
}

static void listed(void)
{
    CHECK(join(NULL) > 0);
    long session = KEY_SPEC_SESSION_KEYRING;
    long key = add("user", "listed", "12345", session);
    CHECK(is_listed(key, "I--Q---", " perm 3f010000     0     0 user      listed: 5\n"));
    CHECK(is_listed(number_of(session), "I--Q---", " keyring   _ses: 1\n"));
    CHECK(control(KEYCTL_SET_TIMEOUT, key, 7000, 0, 0) == 0);
    CHECK(is_listed(key, "I--Q---", "   1h 3f010000 "));
    CHECK(control(KEYCTL_REVOKE, key, 0, 0, 0) == 0);
    CHECK(!is_listed(key, "I--Q---", ""));
    CHECK(is_listed(key, "IR-Q---", " listed"));
    /* Only what the reader may view. */
    key = add("user", "hidden", "12345", session);
    CHECK(permit(key, KEY_POS_SETATTR | KEY_POS_SEARCH) == 0);
    CHECK(!is_listed(key, "I--Q---", ""));
    CHECK(setting("gc_delay") <= 3600 && setting("persistent_keyring_expiry") > 0);
    CHECK(setting("root_maxkeys") > 0 && setting("root_maxbytes") > 0);
}

int main(int count, char **arguments)
{
    if (count > 2 && strcmp(arguments[1], "executed") == 0) return executed(arguments[2]);
    if (number_of(KEY_SPEC_USER_KEYRING) < 0 && (errno == ENOSYS || errno == EPERM)) {
        printf("skipped: no keyrings here (errno %d)\n", errno);
        return finish("keys");
    }
    CHECK(apart(types) == 0);
    CHECK(apart(special_keyrings) == 0);
    CHECK(apart(permissions) == 0);
    CHECK(apart(links) == 0);
    CHECK(apart(inheritance) == 0);
    CHECK(apart(ends) == 0);
    CHECK(apart(quotas) == 0);
    CHECK(apart(listed) == 0);
    return finish("keys");
}
