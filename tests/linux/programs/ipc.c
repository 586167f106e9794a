#include "check.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

struct message { long type; char text[64]; };

int main(void) {
    int status;
    int s = semget(IPC_PRIVATE, 2, 0600);
    CHECK(s >= 0);
    CHECK(semctl(s, 0, SETVAL, 1) == 0 && semctl(s, 0, GETVAL) == 1);
    struct sembuf down = {0, -1, SEM_UNDO}, up = {0, 1, 0}, zero = {1, 0, IPC_NOWAIT}, none = {0, -1, IPC_NOWAIT};
    CHECK(semop(s, &down, 1) == 0 && semctl(s, 0, GETPID) == getpid());
    CHECK(semop(s, &zero, 1) == 0);
    CHECK(semop(s, &none, 1) == -1 && errno == EAGAIN);
    struct timespec ms = {0, 20000000};
    struct sembuf wait = {0, -1, 0};
    int64_t start = now_ms();
    CHECK(semtimedop(s, &wait, 1, &ms) == -1 && errno == EAGAIN && now_ms() - start >= 19);
    pid_t p = fork();
    if (p == 0) { struct sembuf b = {0, 3, SEM_UNDO}; semop(s, &b, 1); usleep(50000); _exit(0); }
    struct sembuf three = {0, -3, 0};
    CHECK(semop(s, &three, 1) == 0);
    CHECK(waitpid(p, &status, 0) == p && semctl(s, 0, GETVAL) == 0);
    CHECK(semop(s, &up, 1) == 0);
    unsigned short all[2];
    CHECK(semctl(s, 0, GETALL, all) == 0 && all[0] == 1 && all[1] == 0);
    p = fork();
    if (p == 0) { struct sembuf b = {1, -1, 0}; _exit(semop(s, &b, 1) == -1 && errno == EIDRM ? 0 : 1); }
    while (semctl(s, 1, GETNCNT) != 1) usleep(1000);
    struct semid_ds ds;
    CHECK(semctl(s, 0, IPC_STAT, &ds) == 0 && ds.sem_nsems == 2 && (ds.sem_perm.mode & 0777) == 0600);
    CHECK(semctl(s, 0, IPC_RMID) == 0);
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 0);

    key_t key = 0x62756c6c;
    int q = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(q >= 0 && msgget(key, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST);
    CHECK(msgget(key, 0) == q);
    struct message m = {7, "seven"}, r;
    CHECK(msgsnd(q, &m, 6, 0) == 0);
    m.type = 3; strcpy(m.text, "three");
    CHECK(msgsnd(q, &m, 6, 0) == 0);
    CHECK(msgrcv(q, &r, sizeof r.text, -5, 0) == 6 && r.type == 3 && !strcmp(r.text, "three"));
    CHECK(msgrcv(q, &r, 2, 0, 0) == -1 && errno == E2BIG);
    CHECK(msgrcv(q, &r, 3, 0, MSG_NOERROR) == 3 && r.type == 7);
    CHECK(msgrcv(q, &r, 3, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
    p = fork();
    if (p == 0) { usleep(30000); m.type = 9; _exit(msgsnd(q, &m, 6, 0) != 0); }
    CHECK(msgrcv(q, &r, sizeof r.text, 9, 0) == 6);
    CHECK(waitpid(p, &status, 0) == p && status == 0);
    struct msqid_ds md;
    CHECK(msgctl(q, IPC_STAT, &md) == 0 && md.msg_qnum == 0 && md.msg_lspid == p && md.msg_lrpid == getpid());
    CHECK(msgctl(q, IPC_RMID, 0) == 0 && msgget(key, 0) == -1 && errno == ENOENT);

    int shm = shmget(IPC_PRIVATE, 8192, 0600);
    int *memory = shmat(shm, 0, 0);
    CHECK(shm >= 0 && memory != (void *)-1);
    p = fork();
    if (p == 0) { memory[100] = 5; _exit(0); }
    CHECK(waitpid(p, 0, 0) == p && memory[100] == 5);
    CHECK(shmctl(shm, IPC_RMID, 0) == 0 && shmdt(memory) == 0);
    return finish("ipc");
}
