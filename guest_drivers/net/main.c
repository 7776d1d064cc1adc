// SPDX-License-Identifier: MIT
/*
 * Exercises every network device found, or serves, sends, receives or measures on the first.  Options:
 *
 *	net.mode=	tests (the default), serve, send, receive or measure
 *	net.ip=		our address; 192.0.2.2
 *	net.peer=	the host's address, which answers ARP and echo requests; 192.0.2.1
 *	net.port=	UDP port to send to and from, or to receive on; 5001
 *	net.frames=	how many: to send or measure (1000), or to answer and stop (serve; 0 is no limit)
 *	net.depth=	frames in flight, when measuring; 1
 *	net.receive=1	measure frames that come, not frames that go
 *	net.size=	bytes of UDP payload to send; 64
 *	net.vhost=	1: skip what Linux's vhost-net is known to do differently; 0
 *	net.features=	feature bits to negotiate, if offered, when not testing; EVENT_IDX
 */
#include "net/test.h"

const char *const guest_options[] = {
	"net.mode", "net.ip", "net.peer", "net.port", "net.frames", "net.depth", "net.receive",
	"net.size", "net.vhost", "net.features", NULL,
};

static const struct {
	const char *name;
	void (*run)(struct net_test *t);
} modes[] = {
	{ "serve", serve },
	{ "send", send },
	{ "receive", receive },
	{ "measure", measure },
};

static void run_tests(struct net_test *t)
{
	virtio_test_basics(t->base);
	test_config(t);
	test_feature_sets(t);
	test_control(t);
	test_multiqueue(t);
	test_malformed(t);
	virtio_reset(t->device);
}

static const char *option(const char *name, const char *otherwise)
{
	const char *value = cmdline_option(name);

	return value ? value : otherwise;
}

static void (*chosen_mode(void))(struct net_test *t)
{
	const char *mode = option("net.mode", "tests");

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
		if (string_equal(mode, modes[i].name))
			return modes[i].run;
	if (!string_equal(mode, "tests"))
		tap_bail_out("net.mode=%s is none of tests, serve, send, receive and measure", mode);
	return run_tests;
}

static void run(struct virtio_test *base)
{
	/* Locally administered, for a device that has no address to give. */
	static const uint8_t own_mac[MAC_SIZE] = { 0x02, 0, 0, 0, 0, 0x02 };
	static struct net_test t;

	t = (struct net_test){
		.base = base,
		.device = base->device,
		.name = base->name,
		.qemu = base->qemu,
		.vhost = cmdline_number("net.vhost", 0),
		.link.ip = parse_ip(option("net.ip", "192.0.2.2")),
		.link.peer_ip = parse_ip(option("net.peer", "192.0.2.1")),
	};
	memcpy(t.link.mac, own_mac, MAC_SIZE);
	if (test_offers(&t, VIRTIO_NET_F_MAC))
		net_read_mac(t.device, t.link.mac);
	chosen_mode()(&t);
}

int main(void)
{
	virtio_test_each(VIRTIO_ID_NETWORK, "net", run);
	tap_done();
}
