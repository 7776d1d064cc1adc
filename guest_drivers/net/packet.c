// SPDX-License-Identifier: MIT
/* As much of Ethernet, ARP, IPv4, ICMP and UDP as it takes to be found and to answer. */
#include "packet.h"
#include "runtime.h"

#define ARP_ETHERNET	1
#define IP_OCTETS	4
#define SUM_GOOD	0xffff	/* of anything that includes its checksum */

uint32_t parse_ip(const char *text)
{
	const char *const whole = text;
	uint32_t address = 0;
	uint64_t octet;

	for (unsigned int i = 0; i < IP_OCTETS; i++) {
		if (!parse_number(&text, &octet) || octet > UINT8_MAX
		    || *text != (i == IP_OCTETS - 1 ? '\0' : '.'))
			tap_bail_out("%s is not an IPv4 address", whole);
		text++;
		address = address << 8 | (uint32_t)octet;
	}
	return be32(address);
}

/* ----- checksums ----- */

uint64_t sum_add(uint64_t sum, uint64_t value)
{
	__asm__("addq %1, %0\n\tadcq $0, %0" : "+r"(sum) : "rm"(value) : "cc");
	return sum;
}

uint16_t sum_fold(uint64_t sum)
{
	sum = (sum & UINT32_MAX) + (sum >> 32);
	sum = (sum & UINT16_MAX) + (sum >> 16 & UINT16_MAX) + (sum >> 32);
	sum = (sum & UINT16_MAX) + (sum >> 16);
	return (uint16_t)((sum & UINT16_MAX) + (sum >> 16));
}

/* 32 bytes a turn: where ring 0 is interpreted, every instruction counts. */
#define SUM_BLOCK	32

uint64_t sum_bytes(uint64_t sum, const void *data, size_t size)
{
	const uint8_t *bytes = data;
	uint64_t rest = 0;

	for (; size >= SUM_BLOCK; size -= SUM_BLOCK, bytes += SUM_BLOCK)
		__asm__("addq 0(%1), %0\n\t"
			"adcq 8(%1), %0\n\t"
			"adcq 16(%1), %0\n\t"
			"adcq 24(%1), %0\n\t"
			"adcq $0, %0"
			: "+r"(sum) : "r"(bytes), "m"(*(const uint8_t (*)[SUM_BLOCK])bytes) : "cc");
	for (; size >= sizeof(rest); size -= sizeof(rest), bytes += sizeof(rest))
		sum = sum_add(sum, *(const uint64_t *)bytes);
	/* As many headers end. */
	if (size >= sizeof(uint32_t)) {
		sum = sum_add(sum, *(const uint32_t *)bytes);
		size -= sizeof(uint32_t);
		bytes += sizeof(uint32_t);
	}
	for (size_t i = 0; i < size; i++)
		rest |= (uint64_t)bytes[i] << (8 * i);
	return sum_add(sum, rest);
}

uint64_t sum_pseudo(const struct ipv4 *ip, uint16_t length)
{
	return (uint64_t)ip->source + ip->destination + be16(ip->protocol) + be16(length);
}

void ip_checksum(struct ipv4 *ip)
{
	ip->checksum = 0;
	ip->checksum = (uint16_t)~sum_fold(sum_bytes(0, ip, sizeof(*ip)));
}

/* ----- making frames ----- */

static void make_ethernet(struct ethernet *ethernet, const struct net_link *link, uint16_t type)
{
	memcpy(ethernet->destination, link->peer_mac, MAC_SIZE);
	memcpy(ethernet->source, link->mac, MAC_SIZE);
	ethernet->type = be16(type);
}

static void make_ip(struct ipv4 *ip, const struct net_link *link, uint8_t protocol, uint32_t length)
{
	*ip = (struct ipv4){
		.version_ihl = IPV4_VERSION_IHL,
		.length = be16(sizeof(*ip) + length),
		.ttl = IPV4_TTL,
		.protocol = protocol,
		.source = link->ip,
		.destination = link->peer_ip,
	};
	ip_checksum(ip);
}

static uint32_t padded(void *frame, uint32_t len)
{
	if (len >= FRAME_MIN)
		return len;
	memset((uint8_t *)frame + len, 0, FRAME_MIN - len);
	return FRAME_MIN;
}

uint32_t make_arp(void *frame, const struct net_link *link, uint16_t operation)
{
	struct arp_frame *arp = frame;

	make_ethernet(&arp->ethernet, link, ETHERTYPE_ARP);
	if (operation == ARP_REQUEST)
		memset(arp->ethernet.destination, UINT8_MAX, MAC_SIZE);
	arp->arp = (struct arp){
		.hardware = be16(ARP_ETHERNET),
		.protocol = be16(ETHERTYPE_IPV4),
		.hardware_size = MAC_SIZE,
		.protocol_size = sizeof(link->ip),
		.operation = be16(operation),
		.sender_ip = link->ip,
		.target_ip = link->peer_ip,
	};
	memcpy(arp->arp.sender_mac, link->mac, MAC_SIZE);
	if (operation != ARP_REQUEST)
		memcpy(arp->arp.target_mac, link->peer_mac, MAC_SIZE);
	return padded(frame, sizeof(*arp));
}

uint32_t make_echo(void *frame, const struct net_link *link, uint16_t sequence, uint32_t payload)
{
	struct echo_frame *echo = frame;
	const uint32_t length = (uint32_t)sizeof(echo->icmp) + payload;

	make_ethernet(&echo->ethernet, link, ETHERTYPE_IPV4);
	make_ip(&echo->ip, link, IP_PROTOCOL_ICMP, length);
	echo->icmp = (struct icmp_echo){ .type = ICMP_ECHO_REQUEST, .sequence = be16(sequence) };
	echo->icmp.checksum = (uint16_t)~sum_fold(sum_bytes(0, &echo->icmp, length));
	return padded(frame, (uint32_t)sizeof(*echo) + payload);
}

uint32_t make_udp(void *frame, const struct net_link *link, uint16_t port, uint32_t payload)
{
	struct udp_frame *udp = frame;
	const uint32_t length = (uint32_t)sizeof(udp->udp) + payload;

	make_ethernet(&udp->ethernet, link, ETHERTYPE_IPV4);
	make_ip(&udp->ip, link, IP_PROTOCOL_UDP, length);
	udp->udp = (struct udp){ be16(port), be16(port), be16(length), 0 };
	return padded(frame, (uint32_t)sizeof(*udp) + payload);
}

/* ----- turning frames round ----- */

static void turn_ethernet(struct ethernet *ethernet, const struct net_link *link)
{
	memcpy(ethernet->destination, ethernet->source, MAC_SIZE);
	memcpy(ethernet->source, link->mac, MAC_SIZE);
}

void turn_arp(void *frame, const struct net_link *link)
{
	struct arp *arp = &((struct arp_frame *)frame)->arp;

	turn_ethernet(frame, link);
	arp->operation = be16(ARP_REPLY);
	memcpy(arp->target_mac, arp->sender_mac, MAC_SIZE);
	memcpy(arp->sender_mac, link->mac, MAC_SIZE);
	arp->target_ip = arp->sender_ip;
	arp->sender_ip = link->ip;
}

/* The header's checksum stays: a sum does not mind the order. */
static void turn_ip(struct ipv4 *ip)
{
	const uint32_t source = ip->source;

	ip->source = ip->destination;
	ip->destination = source;
}

void turn_echo(void *frame, const struct net_link *link)
{
	struct echo_frame *echo = frame;

	turn_ethernet(&echo->ethernet, link);
	turn_ip(&echo->ip);
	/* RFC 1624: one word lost ICMP_ECHO_REQUEST, so the complement of the sum gains it. */
	echo->icmp.type = ICMP_ECHO_REPLY;
	echo->icmp.checksum = sum_fold((uint64_t)echo->icmp.checksum + ICMP_ECHO_REQUEST);
}

void turn_udp(void *frame, const struct net_link *link)
{
	struct udp_frame *udp = frame;
	const uint16_t source = udp->udp.source;

	turn_ethernet(&udp->ethernet, link);
	turn_ip(&udp->ip);
	udp->udp.source = udp->udp.destination;
	udp->udp.destination = source;
}

/* ----- taking frames ----- */

static enum packet_kind classify_arp(const struct arp *arp, const struct net_link *link)
{
	if (arp->protocol != be16(ETHERTYPE_IPV4) || arp->target_ip != link->ip)
		return PACKET_OTHER;
	if (arp->operation == be16(ARP_REQUEST))
		return PACKET_ARP_REQUEST;
	return arp->operation == be16(ARP_REPLY) ? PACKET_ARP_REPLY : PACKET_OTHER;
}

static enum packet_kind classify_icmp(const struct icmp_echo *icmp, uint32_t length, bool validated)
{
	if (!validated && sum_fold(sum_bytes(0, icmp, length)) != SUM_GOOD)
		return PACKET_BAD_CHECKSUM;
	if (icmp->type == ICMP_ECHO_REQUEST)
		return PACKET_ECHO_REQUEST;
	return icmp->type == ICMP_ECHO_REPLY ? PACKET_ECHO_REPLY : PACKET_OTHER;
}

static enum packet_kind classify_udp(const struct udp_frame *frame, uint32_t length, bool validated)
{
	const uint16_t udp_length = be16(frame->udp.length);

	if (udp_length < sizeof(frame->udp) || udp_length > length)
		return PACKET_OTHER;
	/* RFC 768: 0 is for a sender who made none. */
	if (validated || !frame->udp.checksum)
		return PACKET_UDP;
	if (sum_fold(sum_bytes(sum_pseudo(&frame->ip, udp_length), &frame->udp, udp_length))
	    != SUM_GOOD)
		return PACKET_BAD_CHECKSUM;
	return PACKET_UDP;
}

enum packet_kind classify(const void *frame, uint32_t len, const struct net_link *link,
			  bool validated)
{
	const struct udp_frame *packet = frame;
	const struct ipv4 *ip = &packet->ip;
	uint32_t length;

	if (len < PAYLOAD_OFFSET)
		return PACKET_OTHER;
	if (packet->ethernet.type == be16(ETHERTYPE_ARP))
		return classify_arp(&((const struct arp_frame *)frame)->arp, link);
	length = be16(ip->length);
	if (packet->ethernet.type != be16(ETHERTYPE_IPV4) || ip->version_ihl != IPV4_VERSION_IHL
	    || ip->destination != link->ip || ip->fragment & be16(IPV4_FRAGMENT_MASK)
	    || length < sizeof(*ip) + sizeof(struct udp) || length > len - sizeof(packet->ethernet))
		return PACKET_OTHER;
	if (sum_fold(sum_bytes(0, ip, sizeof(*ip))) != SUM_GOOD)
		return PACKET_BAD_CHECKSUM;
	length -= (uint32_t)sizeof(*ip);
	if (ip->protocol == IP_PROTOCOL_UDP)
		return classify_udp(packet, length, validated);
	if (ip->protocol == IP_PROTOCOL_ICMP)
		return classify_icmp(&((const struct echo_frame *)frame)->icmp, length, validated);
	return PACKET_OTHER;
}
