/*
 * The limit: what the kernel takes to bind a loop device to each file named on the command line, and nothing else.
 * LOOP_CTL_GET_FREE walks all devices, so it counts up by itself; the nodes exist already.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { NUMBERS = 1 << 16 };

static int bind_next(int image, int *number)
{
    struct loop_config config;
    char node[32];
    memset(&config, 0, sizeof config);
    config.fd = image;
    config.block_size = 512;
    for (; *number < NUMBERS; ++*number) {
        snprintf(node, sizeof node, "/dev/loop%d", *number);
        int device = open(node, O_RDWR | O_CLOEXEC);
        if (device < 0)
            continue; /* numbers have holes */
        int failed = ioctl(device, LOOP_CONFIGURE, &config);
        close(device);
        if (!failed)
            return 0;
        if (errno != EBUSY && errno != ENXIO)
            return -1;
    }
    return -1;
}

int main(int count, char **names)
{
    int number = 0;
    for (int i = 1; i < count; ++i, ++number) {
        int image = open(names[i], O_RDWR | O_CLOEXEC);
        if (image < 0 || bind_next(image, &number) < 0) {
            perror(names[i]);
            return 1;
        }
        close(image);
    }
    return 0;
}
