/*
 * Four processes that take, fill and check memory, hold values in vector registers over system calls, add up floating
 * point numbers, and start processes, for a while. Says "stress: right", or what was wrong. As the only program of a
 * machine it ends the machine, too; else its arguments are for how many seconds it goes on, unless SIGTERM comes
 * before, and for how many milliseconds a process rests after each round.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The sum of 1/i² up to 20000, as IEEE 754 doubles give it in this order. */
#define SUM 0x1.a5171f4e31786p+0

enum { WORKERS = 4, BLOCKS = 256, CALLS = 2000, LARGEST = 64 << 10 };

struct block { unsigned char *at; size_t size; unsigned char first; };

static uint64_t state;
static volatile sig_atomic_t asked_to_end;
static useconds_t rest;

static void ask_to_end(int number) {
    (void)number;
    asked_to_end = 1;
}

static uint64_t next(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static time_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

static void wrong(const char *what) {
    printf("stress: wrong: %s in process %d\n", what, (int)getpid());
    exit(1);
}

static void fill(struct block *block) {
    block->size = 1 + next() % LARGEST;
    block->first = (unsigned char)next();
    block->at = malloc(block->size);
    if (!block->at) wrong("no memory");
    for (size_t i = 0; i < block->size; i++) block->at[i] = (unsigned char)(block->first + i * 7);
}

static void check(struct block *block) {
    for (size_t i = 0; i < block->size; i++)
        if (block->at[i] != (unsigned char)(block->first + i * 7)) wrong("memory");
    free(block->at);
    block->at = NULL;
}

/* Sets two vector registers, makes system calls, and reads the registers. */
static void hold_vectors(void) {
    uint64_t in[4] = { next(), next(), next(), next() }, out[4] = { 0 };
    __asm__ volatile(
        "movups (%0), %%xmm8\n\t"
        "movups 16(%0), %%xmm15\n\t"
        "movl %2, %%r12d\n"
        "1:\tmovl %3, %%eax\n\t"
        "syscall\n\t"
        "decl %%r12d\n\t"
        "jnz 1b\n\t"
        "movups %%xmm8, (%1)\n\t"
        "movups %%xmm15, 16(%1)"
        :
        : "r"(in), "r"(out), "i"(CALLS), "i"(SYS_getppid)
        : "rax", "rcx", "r11", "r12", "xmm8", "xmm15", "memory", "cc");
    if (memcmp(in, out, sizeof in)) wrong("a vector register");
}

static void add_up(void) {
    volatile double sum = 0;
    for (int i = 1; i <= 20000; i++) sum += 1.0 / ((double)i * i);
    if (sum != SUM) wrong("a floating point sum");
}

static void start_one(void) {
    uint64_t before = state;
    pid_t child = fork();
    if (child < 0) wrong("no process");
    if (child == 0) _exit(state == before ? 7 : 1);
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7) wrong("a child");
}

static void work(int number, time_t ends) {
    static struct block blocks[BLOCKS];
    unsigned long rounds = 0;
    state = 88172645463325252ull + (uint64_t)number * 7919;
    for (; now() < ends && !asked_to_end; rounds++) {
        for (int i = 0; i < 64; i++) {
            struct block *block = &blocks[next() % BLOCKS];
            if (block->at) check(block);
            fill(block);
        }
        hold_vectors();
        add_up();
        start_one();
        usleep(rest);
    }
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].at) check(&blocks[i]);
    printf("stress: process %d: %lu rounds\n", number, rounds);
    exit(0);
}

static int seconds(void) {
    char line[4096] = "";
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    int file = open("/proc/cmdline", O_RDONLY);
    if (file >= 0 && read(file, line, sizeof line - 1) < 0) wrong("no command line");
    const char *at = strstr(line, "stress.seconds=");
    return at ? atoi(at + strlen("stress.seconds=")) : 30;
}

static void take_console(void) {
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(console, i);
}

/* Runs the processes for as long, and returns how many of them found something wrong. */
static int run_all(int lasts) {
    pid_t workers[WORKERS];
    int failed = 0, status;
    printf("stress: %d processes for %d s\n", WORKERS, lasts);
    time_t ends = now() + lasts;
    for (int i = 0; i < WORKERS; i++)
        if ((workers[i] = fork()) == 0) work(i, ends);
    /* It looks again and again, since the signal may come just before a wait. */
    for (int left = WORKERS; left > 0; usleep(50000)) {
        if (asked_to_end)
            for (int i = 0; i < WORKERS; i++) kill(workers[i], SIGTERM);
        for (; waitpid(-1, &status, WNOHANG) > 0; left--) {
            if (WIFSIGNALED(status)) printf("stress: wrong: signal %d ended a process\n", WTERMSIG(status));
            failed += status != 0;
        }
    }
    return failed;
}

int main(int count, char **words) {
    int alone = getpid() == 1;
    if (!alone && count != 3) return 2;
    rest = alone ? 0 : atoi(words[2]) * 1000;
    if (alone) take_console();
    setvbuf(stdout, NULL, _IOLBF, 0);
    /* A wait for a child goes on after it. */
    struct sigaction action = { .sa_handler = ask_to_end, .sa_flags = SA_RESTART };
    sigaction(SIGTERM, &action, NULL);
    int failed = run_all(alone ? seconds() : atoi(words[1]));
    if (!failed) printf("stress: right\n");
    fflush(stdout);
    if (alone) {
        sync();
        reboot(RB_AUTOBOOT);
    }
    return failed != 0;
}
