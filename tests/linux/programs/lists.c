/* Access control lists: what they grant, how they and the permission bits follow each other, what new
 * files inherit, what is no list. */
#include "check.h"
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>

#define ACCESS "system.posix_acl_access"
#define DEFAULT "system.posix_acl_default"
#define NONE 0xffffffffu

enum { OWNER = 1, USER = 2, GROUP = 4, NAMED = 8, MASK = 16, OTHER = 32 };

struct entry { uint16_t tag, permissions; uint32_t id; };
struct list { uint32_t version; struct entry entries[8]; };
#define SIZE(count) (4 + 8 * (count))

/* Owner rw-, user 1001 rw-, group ---, group 2002 r--, mask rw-, others ---. */
static const struct list example = {2, {
    {OWNER, 6, NONE}, {USER, 6, 1001}, {GROUP, 0, NONE}, {NAMED, 4, 2002}, {MASK, 6, NONE}, {OTHER, 0, NONE}}};

static char place[] = "/tmp/lists-XXXXXX";

static mode_t mode_of(const char *path) {
    struct stat status = {0};
    CHECK(lstat(path, &status) == 0);
    return status.st_mode & 07777;
}

static void make(const char *path) {
    int file = open(path, O_CREAT | O_WRONLY | O_EXCL, 0600);
    CHECK(file >= 0 && write(file, "x", 1) == 1);
    close(file);
}

/* open(path, flags) as someone else: 0 or the error. */
static int as(uid_t uid, gid_t gid, const char *path, int flags) {
    pid_t child = fork();
    if (child == 0) {
        if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) _exit(99);
        int file = open(path, flags);
        _exit(file < 0 ? errno : access(path, flags == O_RDONLY ? R_OK : W_OK) ? 98 : 0);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void grants(void) {
    make("a");
    CHECK(getxattr("a", ACCESS, NULL, 0) == -1 && errno == ENODATA);
    CHECK(as(1001, 5, "a", O_RDONLY) == EACCES);
    CHECK(setxattr("a", ACCESS, &example, SIZE(6), 0) == 0);
    CHECK(mode_of("a") == 0660);
    struct list found;
    CHECK(getxattr("a", ACCESS, &found, sizeof found) == SIZE(6));
    CHECK(memcmp(&found, &example, SIZE(6)) == 0);
    CHECK(getxattr("a", ACCESS, &found, 10) == -1 && errno == ERANGE);
    CHECK(getxattr("a", ACCESS, NULL, 0) == SIZE(6));
    char names[200];
    CHECK(listxattr("a", names, sizeof names) >= (ssize_t)sizeof ACCESS);
    CHECK(as(1001, 5, "a", O_RDONLY) == 0 && as(1001, 5, "a", O_WRONLY) == 0);
    CHECK(as(1002, 5, "a", O_RDONLY) == EACCES);
    CHECK(as(1002, 2002, "a", O_RDONLY) == 0 && as(1002, 2002, "a", O_WRONLY) == EACCES);
    /* The file's own group, without rights; others have none either. */
    CHECK(as(1002, 0, "a", O_RDONLY) == EACCES);
    /* chmod narrows the mask. */
    CHECK(chmod("a", 0640) == 0 && as(1001, 5, "a", O_WRONLY) == EACCES);
    CHECK(as(1001, 5, "a", O_RDONLY) == 0);
    CHECK(getxattr("a", ACCESS, &found, sizeof found) == SIZE(6));
    CHECK(found.entries[4].permissions == 4 && found.entries[1].permissions == 6);
    CHECK(found.entries[2].permissions == 0);
    CHECK(chmod("a", 0600) == 0 && as(1001, 5, "a", O_RDONLY) == EACCES);
    CHECK(chmod("a", 0660) == 0 && as(1001, 5, "a", O_WRONLY) == 0);
    /* The owner keeps to the owner's class. */
    CHECK(chown("a", 1001, 0) == 0 && chmod("a", 0060) == 0);
    CHECK(as(1001, 2002, "a", O_RDONLY) == EACCES && as(1002, 2002, "a", O_RDONLY) == 0);
    CHECK(chown("a", 0, 0) == 0 && chmod("a", 0660) == 0);
    /* A link has the same list; a copy of the name too. */
    CHECK(link("a", "hard") == 0 && symlink("a", "soft") == 0);
    CHECK(getxattr("hard", ACCESS, NULL, 0) == SIZE(6) && getxattr("soft", ACCESS, NULL, 0) == SIZE(6));
    CHECK(lgetxattr("soft", ACCESS, NULL, 0) == -1 && errno == EOPNOTSUPP);
    CHECK(lsetxattr("soft", ACCESS, &example, SIZE(6), 0) == -1 && errno == EOPNOTSUPP);
    /* Three entries are what the bits say. */
    struct list minimal = {2, {{OWNER, 7, NONE}, {GROUP, 5, NONE}, {OTHER, 1, NONE}}};
    CHECK(setxattr("a", ACCESS, &minimal, SIZE(3), 0) == 0 && mode_of("a") == 0751);
    CHECK(getxattr("a", ACCESS, NULL, 0) == -1 && errno == ENODATA);
    CHECK(setxattr("a", ACCESS, &example, SIZE(6), XATTR_REPLACE) == 0);
    CHECK(removexattr("a", ACCESS) == 0 && mode_of("a") == 0660);
    CHECK(getxattr("a", ACCESS, NULL, 0) == -1 && errno == ENODATA);
    CHECK(as(1001, 5, "a", O_RDONLY) == EACCES);
    CHECK(setxattr("a", ACCESS, &example, SIZE(6), 0) == 0);
    CHECK(setxattr("a", ACCESS, &example, 4, 0) == 0);
    CHECK(getxattr("a", ACCESS, NULL, 0) == -1 && errno == ENODATA);
}

static void searches(void) {
    CHECK(mkdir("d", 0700) == 0);
    make("d/in");
    CHECK(chmod("d/in", 0644) == 0);
    struct list list = {2, {{OWNER, 7, NONE}, {USER, 1, 1001}, {GROUP, 0, NONE}, {MASK, 7, NONE}, {OTHER, 0, NONE}}};
    CHECK(as(1001, 5, "d/in", O_RDONLY) == EACCES);
    CHECK(setxattr("d", ACCESS, &list, SIZE(5), 0) == 0);
    CHECK(as(1001, 5, "d/in", O_RDONLY) == 0 && as(1002, 5, "d/in", O_RDONLY) == EACCES);
    CHECK(as(1001, 5, "d", O_RDONLY) == EACCES);
    /* Everyone may search it but one. */
    list.entries[1].permissions = 0;
    list.entries[2].permissions = list.entries[4].permissions = 5;
    CHECK(setxattr("d", ACCESS, &list, SIZE(5), 0) == 0 && mode_of("d") == 0775);
    CHECK(as(1001, 5, "d/in", O_RDONLY) == EACCES && as(1002, 5, "d/in", O_RDONLY) == 0);
}

static void inherits(void) {
    CHECK(mkdir("p", 0755) == 0);
    struct list list = {2, {{OWNER, 7, NONE}, {USER, 6, 1001}, {GROUP, 5, NONE}, {MASK, 7, NONE}, {OTHER, 4, NONE}}};
    CHECK(setxattr("p", DEFAULT, &list, SIZE(5), 0) == 0 && mode_of("p") == 0755);
    CHECK(getxattr("p", ACCESS, NULL, 0) == -1 && errno == ENODATA);
    CHECK(as(1001, 5, "p", O_RDONLY) == 0);
    umask(077);
    int file = open("p/f", O_CREAT | O_RDWR, 0666);
    CHECK(file >= 0 && mode_of("p/f") == 0664);
    struct list found;
    CHECK(fgetxattr(file, ACCESS, &found, sizeof found) == SIZE(5));
    CHECK(found.entries[0].permissions == 6 && found.entries[1].permissions == 6);
    CHECK(found.entries[2].permissions == 5 && found.entries[3].permissions == 6);
    CHECK(found.entries[4].permissions == 4);
    CHECK(fgetxattr(file, DEFAULT, NULL, 0) == -1 && errno == ENODATA);
    CHECK(fsetxattr(file, DEFAULT, &list, SIZE(5), 0) == -1 && errno == EACCES);
    close(file);
    CHECK(mkdir("p/d", 0700) == 0 && mode_of("p/d") == 0700);
    CHECK(getxattr("p/d", ACCESS, &found, sizeof found) == SIZE(5) && found.entries[3].permissions == 0);
    CHECK(getxattr("p/d", DEFAULT, &found, sizeof found) == SIZE(5));
    CHECK(memcmp(&found, &list, SIZE(5)) == 0);
    CHECK(mknod("p/fifo", S_IFIFO | 0622, 0) == 0 && mode_of("p/fifo") == 0620);
    CHECK(symlink("f", "p/l") == 0 && mode_of("p/l") == 0777);
    file = open("p", O_TMPFILE | O_RDWR, 0640);
    struct stat status;
    CHECK(file >= 0 && fstat(file, &status) == 0 && (status.st_mode & 0777) == 0640);
    CHECK(fgetxattr(file, ACCESS, NULL, 0) == SIZE(5));
    close(file);
    /* bind(2) applies the umask all the same. */
    struct sockaddr_un name = {AF_UNIX, "p/s"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(s, (void *)&name, sizeof name) == 0 && mode_of("p/s") == 0700);
    close(s);
    /* Without a default list the umask counts again. */
    CHECK(removexattr("p", DEFAULT) == 0);
    make("p/g");
    CHECK(mkdir("p/h", 0777) == 0 && mode_of("p/h") == 0700);
    CHECK(getxattr("p/h", DEFAULT, NULL, 0) == -1 && errno == ENODATA);
    umask(022);
}

static void refuses(void) {
    make("r");
    struct list list = example;
    list.version = 1;
    CHECK(setxattr("r", ACCESS, &list, SIZE(6), 0) == -1 && errno == EOPNOTSUPP);
    list = example;
    CHECK(setxattr("r", ACCESS, &list, SIZE(6) - 1, 0) == -1 && errno == EINVAL);
    CHECK(setxattr("r", ACCESS, &list, SIZE(5), 0) == -1 && errno == EINVAL);
    CHECK(setxattr("r", ACCESS, &list, 3, 0) == -1 && errno == EINVAL);
    list.entries[4].permissions = 8;
    CHECK(setxattr("r", ACCESS, &list, SIZE(6), 0) == -1 && errno == EINVAL);
    list = example;
    list.entries[1].id = NONE;
    CHECK(setxattr("r", ACCESS, &list, SIZE(6), 0) == -1 && errno == EINVAL);
    CHECK(setxattr("r", "system.posix_acl_other", &list, SIZE(6), 0) == -1 && errno == EOPNOTSUPP);
    CHECK(mode_of("r") == 0600);
    pid_t child = fork();
    if (child == 0) {
        CHECK(setresuid(1001, 1001, 1001) == 0);
        CHECK(setxattr("r", ACCESS, &example, SIZE(6), 0) == -1 && errno == EPERM);
        CHECK(removexattr("r", ACCESS) == -1 && errno == EPERM);
        CHECK(getxattr("r", ACCESS, NULL, 0) == -1 && errno == ENODATA);
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static int removed(const char *path, const struct stat *status, int kind, struct FTW *walk) {
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

int main(void) {
    umask(022);
    CHECK(mkdtemp(place) && chdir(place) == 0 && chmod(place, 0755) == 0);
    grants();
    searches();
    inherits();
    refuses();
    CHECK(chdir("/") == 0);
    nftw(place, removed, 8, FTW_DEPTH | FTW_PHYS);
    return finish("lists");
}
