/* Starts the packet loop of flannel's udp backend, run_proxy() of its proxy_amd64.c, as flanneld does: with a TUN device without
 * packet information, a UDP socket bound to the underlay's address, and one route, told over a socket pair. What it is told
 * comes from the environment: benches/src/subject/external.rs. */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proxy_amd64.h"

static const char *want(const char *name) {
    const char *value = getenv(name);
    if (!value)
        errx(2, "%s is not set", name);
    return value;
}

static in_addr_t address(const char *text) {
    struct in_addr address;
    if (inet_pton(AF_INET, text, &address) != 1)
        errx(2, "%s is no IPv4 address", text);
    return address.s_addr;
}

static int open_tun(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    int tun = open("/dev/net/tun", O_RDWR);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0)
        err(1, "TUN device %s", name);
    return tun;
}

static int bind_udp(const char *own, int port) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = address(own)};
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (udp < 0 || bind(udp, (struct sockaddr *)&here, sizeof here) < 0)
        err(1, "UDP port %d on %s", port, own);
    return udp;
}

int main(void) {
    int port = atoi(want("WEFT_BENCH_PORT"));
    int tun = open_tun(want("WEFT_BENCH_TUN"));
    int udp = bind_udp(want("WEFT_BENCH_UNDERLAY_OWN"), port);
    int control[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, control) < 0)
        err(1, "socket pair");

    char subnet[32] = {0};
    strncpy(subnet, want("WEFT_BENCH_OVERLAY_SUBNET_PEER"), sizeof subnet - 1);
    char *slash = strchr(subnet, '/');
    if (!slash)
        errx(2, "%s is no subnet", subnet);
    *slash = 0;
    command route = {
        .cmd = CMD_SET_ROUTE,
        .dest_net = address(subnet),
        .dest_net_len = atoi(slash + 1),
        .next_hop_ip = address(want("WEFT_BENCH_UNDERLAY_PEER")),
        .next_hop_port = (short)port,
    };
    if (write(control[0], &route, sizeof route) != sizeof route)
        err(1, "control socket");
    run_proxy(tun, udp, control[1], address(want("WEFT_BENCH_TUN_ADDRESS")), atoi(want("WEFT_BENCH_TUN_MTU")), 1);
}
