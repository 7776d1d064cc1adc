/* SPDX-License-Identifier: MIT */
/* As much of Ethernet, ARP, IPv4, ICMP and UDP as it takes to be found and to answer. */
#ifndef NET_PACKET_H
#define NET_PACKET_H

#include "virtio_net.h"

/* Numbers in a packet are big-endian: be16(x) there and back. */
#define be16(x)		((uint16_t)__builtin_bswap16(x))
#define be32(x)		__builtin_bswap32(x)

#define ETHERTYPE_IPV4	0x0800
#define ETHERTYPE_ARP	0x0806

#define ARP_REQUEST	1
#define ARP_REPLY	2

#define IPV4_VERSION_IHL	0x45	/* version 4, five words: no options */
#define IPV4_FRAGMENT_MASK	0x3fff	/* MF and the offset */
#define IPV4_TTL		64
#define IP_PROTOCOL_ICMP	1
#define IP_PROTOCOL_UDP		17

#define ICMP_ECHO_REPLY		0
#define ICMP_ECHO_REQUEST	8

struct __attribute__((packed)) ethernet {
	uint8_t destination[MAC_SIZE];
	uint8_t source[MAC_SIZE];
	uint16_t type;
};

struct __attribute__((packed)) arp {
	uint16_t hardware;
	uint16_t protocol;
	uint8_t hardware_size;
	uint8_t protocol_size;
	uint16_t operation;
	uint8_t sender_mac[MAC_SIZE];
	uint32_t sender_ip;
	uint8_t target_mac[MAC_SIZE];
	uint32_t target_ip;
};

struct __attribute__((packed)) ipv4 {
	uint8_t version_ihl;
	uint8_t tos;
	uint16_t length;
	uint16_t id;
	uint16_t fragment;
	uint8_t ttl;
	uint8_t protocol;
	uint16_t checksum;
	uint32_t source;
	uint32_t destination;
};

struct __attribute__((packed)) icmp_echo {
	uint8_t type;
	uint8_t code;
	uint16_t checksum;
	uint16_t id;
	uint16_t sequence;
};

struct __attribute__((packed)) udp {
	uint16_t source;
	uint16_t destination;
	uint16_t length;
	uint16_t checksum;
};

struct __attribute__((packed)) arp_frame {
	struct ethernet ethernet;
	struct arp arp;
};

/* Both have their payload at offset 42. */
struct __attribute__((packed)) echo_frame {
	struct ethernet ethernet;
	struct ipv4 ip;
	struct icmp_echo icmp;
	uint8_t payload[];
};

struct __attribute__((packed)) udp_frame {
	struct ethernet ethernet;
	struct ipv4 ip;
	struct udp udp;
	uint8_t payload[];
};

#define PAYLOAD_OFFSET	sizeof(struct udp_frame)
#define PAYLOAD_MAX	(NET_FRAME_MAX - PAYLOAD_OFFSET)
#define FRAME_MIN	60	/* what Ethernet pads to */

/* IP addresses are kept as they are in a packet. */
struct net_link {
	uint8_t mac[MAC_SIZE];
	uint8_t peer_mac[MAC_SIZE];
	uint32_t ip;
	uint32_t peer_ip;
};

uint32_t parse_ip(const char *text);

/* ----- checksums (RFC 1071): sums of 16-bit words, in the order of the packet's bytes ----- */

uint64_t sum_add(uint64_t sum, uint64_t value);
uint64_t sum_bytes(uint64_t sum, const void *data, size_t size);
/* 16 bits, with the carries added; not complemented. */
uint16_t sum_fold(uint64_t sum);
/* Of the pseudo header of UDP (RFC 768). */
uint64_t sum_pseudo(const struct ipv4 *ip, uint16_t length);
/* Set the IP header's. */
void ip_checksum(struct ipv4 *ip);

/* ----- making frames: each returns the frame's length ----- */

uint32_t make_arp(void *frame, const struct net_link *link, uint16_t operation);
/* The payload is already there. */
uint32_t make_echo(void *frame, const struct net_link *link, uint16_t sequence, uint32_t payload);
/* All but the UDP checksum. */
uint32_t make_udp(void *frame, const struct net_link *link, uint16_t port, uint32_t payload);

/* In place: who asked is answered. */
void turn_arp(void *frame, const struct net_link *link);
void turn_echo(void *frame, const struct net_link *link);
void turn_udp(void *frame, const struct net_link *link);

/* ----- taking frames ----- */

enum packet_kind {
	PACKET_OTHER,		/* not for us, or nothing that we know */
	PACKET_BAD_CHECKSUM,
	PACKET_ARP_REQUEST,
	PACKET_ARP_REPLY,
	PACKET_ECHO_REQUEST,
	PACKET_ECHO_REPLY,
	PACKET_UDP,
};

/*
 * What it is, for `link`: lengths and checksums are good, but for the UDP or ICMP checksum when
 * `validated`.
 */
enum packet_kind classify(const void *frame, uint32_t len, const struct net_link *link,
			  bool validated);

#endif
