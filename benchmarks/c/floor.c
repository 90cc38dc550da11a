/* What NFQUEUE costs at the least: a program in C that accepts every packet and does nothing else.
 *
 * Plain AF_NETLINK, no library. Usage: floor MODE DRAIN QUEUE MAX_LEN RCVBUF
 *   MODE recv     one recv and one send a packet (DRAIN is 1)
 *   MODE singles  one recvmmsg of up to DRAIN, their verdicts by one send
 *   MODE batch    one recvmmsg of up to DRAIN, one NFQNL_MSG_VERDICT_BATCH
 * Runs until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MOST = 256, SLOT = 4096 };

static char slots[MOST][SLOT];
static struct iovec iovecs[MOST];
static struct mmsghdr headers[MOST];

struct verdict {
    struct nlmsghdr nlh;
    struct nfgenmsg gen;
    struct nlattr attr;
    struct nfqnl_msg_verdict_hdr hdr;
};
static struct verdict verdicts[MOST];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void put(char *message, uint16_t type, const void *data, uint16_t size)
{
    struct nlmsghdr *nlh = (struct nlmsghdr *)message;
    struct nlattr *attr = (struct nlattr *)(message + NLMSG_ALIGN(nlh->nlmsg_len));
    attr->nla_type = type;
    attr->nla_len = NLA_HDRLEN + size;
    memcpy(attr + 1, data, size);
    nlh->nlmsg_len = NLMSG_ALIGN(nlh->nlmsg_len) + NLA_ALIGN(attr->nla_len);
}

static void bind_queue(int fd, uint16_t queue, uint32_t max_len)
{
    char message[256] __attribute__((aligned(4))) = {0};
    struct nlmsghdr *nlh = (struct nlmsghdr *)message;
    struct nfgenmsg *gen = (struct nfgenmsg *)(nlh + 1);
    struct nfqnl_msg_config_cmd cmd = {.command = NFQNL_CFG_CMD_BIND};
    struct nfqnl_msg_config_params params = {htonl(0xFFFF), NFQNL_COPY_PACKET};
    uint32_t limit = htonl(max_len);

    nlh->nlmsg_len = NLMSG_LENGTH(sizeof *gen);
    nlh->nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG;
    nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    gen->res_id = htons(queue);
    put(message, NFQA_CFG_CMD, &cmd, sizeof cmd);
    put(message, NFQA_CFG_PARAMS, &params, sizeof params);
    put(message, NFQA_CFG_QUEUE_MAXLEN, &limit, sizeof limit);
    if (send(fd, message, nlh->nlmsg_len, 0) < 0)
        die("send bind");
    if (recv(fd, message, sizeof message, 0) < 0)
        die("recv answer");
    if (nlh->nlmsg_type == NLMSG_ERROR && ((struct nlmsgerr *)(nlh + 1))->error) {
        errno = -((struct nlmsgerr *)(nlh + 1))->error;
        die("bind queue");
    }
}

/* The packet's id, in network order, from wherever in the message it stands. */
static uint32_t packet_id(const char *message, size_t length)
{
    size_t at = NLMSG_LENGTH(sizeof(struct nfgenmsg));
    while (at + NLA_HDRLEN <= length) {
        const struct nlattr *attr = (const struct nlattr *)(message + at);
        if (attr->nla_len < NLA_HDRLEN || at + attr->nla_len > length)
            break;
        if ((attr->nla_type & NLA_TYPE_MASK) == NFQA_PACKET_HDR)
            return ((const struct nfqnl_msg_packet_hdr *)(attr + 1))->packet_id;
        at += NLA_ALIGN(attr->nla_len);
    }
    fprintf(stderr, "a message without a packet id\n");
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: floor recv|singles|batch DRAIN QUEUE MAX_LEN RCVBUF\n");
        return 2;
    }
    int batch = !strcmp(argv[1], "batch"), plain = !strcmp(argv[1], "recv");
    unsigned drain = atoi(argv[2]);
    int rcvbuf = atoi(argv[5]);
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};

    if (drain < 1 || drain > MOST)
        return 2;
    if (fd < 0)
        die("socket");
    /* Connected, so that every send spares the address. */
    if (bind(fd, (struct sockaddr *)&kernel, sizeof kernel) < 0
        || connect(fd, (struct sockaddr *)&kernel, sizeof kernel) < 0)
        die("bind");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcvbuf, sizeof rcvbuf) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
    bind_queue(fd, atoi(argv[3]), atoi(argv[4]));

    for (unsigned i = 0; i < MOST; i++) {
        iovecs[i] = (struct iovec){slots[i], SLOT};
        headers[i].msg_hdr = (struct msghdr){.msg_iov = &iovecs[i], .msg_iovlen = 1};
        verdicts[i] = (struct verdict){
            {sizeof verdicts[i],
             NFNL_SUBSYS_QUEUE << 8 | (batch ? NFQNL_MSG_VERDICT_BATCH : NFQNL_MSG_VERDICT),
             NLM_F_REQUEST, 0, 0},
            {AF_UNSPEC, NFNETLINK_V0, htons(atoi(argv[3]))},
            {NLA_HDRLEN + sizeof verdicts[i].hdr, NFQA_VERDICT_HDR},
            {htonl(NF_ACCEPT), 0},
        };
    }
    for (;;) {
        int got, used = 0;
        if (plain) {
            ssize_t length = recv(fd, slots[0], SLOT, 0);
            headers[0].msg_len = length;
            got = length < 0 ? -1 : 1;
        } else {
            got = recvmmsg(fd, headers, drain, MSG_WAITFORONE, NULL);
        }
        if (got < 0 && (errno == ENOBUFS || errno == EINTR))
            continue;
        if (got < 0)
            die("recv");
        for (int i = batch ? got - 1 : 0; i < got; i++)
            verdicts[used++].hdr.id = packet_id(slots[i], headers[i].msg_len);
        if (send(fd, verdicts, used * sizeof verdicts[0], 0) < 0)
            die("send verdict");
    }
}
