/* Traffic for the measured program, within this machine only.
 *
 *   traffic flood SIZE SNDBUF SECONDS    UDP payloads of SIZE bytes to 127.0.0.1:9
 *   traffic pairs SENDERS SIZE SECONDS   the same from SENDERS processes, from 127.1.0.1, 127.1.0.2
 *                                        and so on to 127.2.0.1, 127.2.0.2 and so on
 *   traffic prime COUNT                  COUNT such packets, from sockets that have room for them
 *   traffic ping COUNT GAP_US            ICMP echoes, one after the other; prints each time in ns
 *
 * SNDBUF 0 keeps the default send buffer, so that about 277 packets are under way before send
 * blocks: a closed loop. A larger one is forced, and makes a deep backlog.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 9, A_SOCKET = 128, LONGEST = 65000, PINGS = 100000 };

static struct sockaddr_in loopback = {.sin_family = AF_INET};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int udp_socket(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    loopback.sin_port = htons(PORT);
    if (fd < 0 || connect(fd, (struct sockaddr *)&loopback, sizeof loopback) < 0)
        die("udp socket");
    return fd;
}

static void send_for_ever(int fd, size_t size)
{
    static char payload[LONGEST];
    for (;;)
        /* EPERM: the program dropped it, and the verdict came before send returned. */
        if (send(fd, payload, size, 0) < 0 && errno != EPERM && errno != ENOBUFS
            && errno != ECONNREFUSED)
            die("send");
}

static void flood(size_t size, int sndbuf, unsigned seconds)
{
    int fd = udp_socket();
    if (sndbuf && setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf, sizeof sndbuf) < 0)
        die("SO_SNDBUFFORCE");
    alarm(seconds);
    send_for_ever(fd, size);
}

/* The balance of the NFQUEUE target hashes addresses and nothing else. */
static void pairs(unsigned senders, size_t size, unsigned seconds)
{
    for (unsigned number = 1; number <= senders; number++) {
        struct sockaddr_in own = {.sin_family = AF_INET};
        int fd;
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(seconds);
        own.sin_addr.s_addr = htonl(0x7f010000 + number);
        loopback.sin_addr.s_addr = htonl(0x7f020000 + number);
        loopback.sin_port = htons(PORT);
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own) < 0
            || connect(fd, (struct sockaddr *)&loopback, sizeof loopback) < 0)
            die("socket of a pair");
        send_for_ever(fd, size);
    }
    /* One that ends is a failure, and ends the others. */
    wait(NULL);
    exit(1);
}

static void prime(unsigned count)
{
    static char payload[32];
    for (unsigned sent = 0; sent < count; sent++) {
        static int fd;
        if (sent % A_SOCKET == 0)
            fd = udp_socket();
        if (send(fd, payload, sizeof payload, 0) < 0)
            die("send");
    }
}

static uint16_t checksum(const void *data, size_t bytes)
{
    const uint16_t *words = data;
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes / 2; i++)
        sum += words[i];
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return ~sum;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void ping(unsigned count, unsigned gap_us)
{
    static int64_t times[PINGS];
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    struct { struct icmphdr icmp; char data[56]; } echo = {{.type = ICMP_ECHO}, {0}};
    char answer[256];
    struct timeval patience = {1, 0};

    if (count > PINGS)
        count = PINGS;
    if (fd < 0 || connect(fd, (struct sockaddr *)&loopback, sizeof loopback) < 0)
        die("raw socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    echo.icmp.un.echo.id = htons(getpid() & 0xFFFF);
    for (unsigned i = 0; i < count; i++) {
        echo.icmp.un.echo.sequence = htons(i);
        echo.icmp.checksum = 0;
        echo.icmp.checksum = checksum(&echo, sizeof echo);
        int64_t start = now_ns();
        if (send(fd, &echo, sizeof echo, 0) < 0)
            die("send echo");
        for (;;) {
            /* Our own request passes here, too. */
            ssize_t length = recv(fd, answer, sizeof answer, 0);
            const struct icmphdr *icmp
                = (const struct icmphdr *)(answer + 4 * (answer[0] & 15));
            if (length < 0)
                die("no answer to a ping");
            if (icmp->type == ICMP_ECHOREPLY && icmp->un.echo.sequence == htons(i))
                break;
        }
        times[i] = now_ns() - start;
        usleep(gap_us);
    }
    for (unsigned i = 0; i < count; i++)
        printf("%lld\n", (long long)times[i]);
}

int main(int argc, char **argv)
{
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (argc == 5 && !strcmp(argv[1], "flood"))
        flood(atoi(argv[2]) % LONGEST, atoi(argv[3]), atoi(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "pairs"))
        pairs(atoi(argv[2]), atoi(argv[3]) % LONGEST, atoi(argv[4]));
    else if (argc == 3 && !strcmp(argv[1], "prime"))
        prime(atoi(argv[2]));
    else if (argc == 4 && !strcmp(argv[1], "ping"))
        ping(atoi(argv[2]), atoi(argv[3]));
    else {
        fprintf(stderr, "usage: traffic flood SIZE SNDBUF SECONDS | pairs SENDERS SIZE SECONDS"
                        " | prime COUNT | ping COUNT US\n");
        return 2;
    }
    return 0;
}
