/* The guest of the tests: counts on its console, every 50 ms, for ever. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void) {
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
    int console = open("/dev/console", O_RDWR);
    for (unsigned n = 0;; n++) {
        dprintf(console, "count %u\n", n);
        usleep(50000);
    }
}
