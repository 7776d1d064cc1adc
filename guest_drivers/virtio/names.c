// SPDX-License-Identifier: MIT
/* The names of devices (5) and of feature bits (6, and each device's section). */
#include "runtime.h"
#include "virtio.h"

struct name {
	uint32_t number;
	const char *name;
};

static const struct name devices[] = {
	{ 1, "network device" },
	{ 2, "block device" },
	{ 3, "console" },
	{ 4, "entropy source" },
	{ 5, "memory ballooning (traditional)" },
	{ 6, "ioMemory" },
	{ 7, "rpmsg" },
	{ 8, "SCSI host" },
	{ 9, "9P transport" },
	{ 10, "mac80211 wlan" },
	{ 11, "rproc serial" },
	{ 12, "virtio CAIF" },
	{ 13, "memory balloon" },
	{ 16, "GPU device" },
	{ 17, "RTC device" },
	{ 18, "input device" },
	{ 19, "socket device" },
	{ 20, "crypto device" },
	{ 21, "signal distribution module" },
	{ 22, "pstore device" },
	{ 23, "IOMMU device" },
	{ 24, "memory device" },
	{ 25, "sound device" },
	{ 26, "file system device" },
	{ 27, "PMEM device" },
	{ 28, "RPMB device" },
	{ 29, "mac80211 hwsim wireless simulation device" },
	{ 30, "video encoder device" },
	{ 31, "video decoder device" },
	{ 32, "SCMI device" },
	{ 33, "NitroSecureModule" },
	{ 34, "I2C adapter" },
	{ 35, "watchdog" },
	{ 36, "CAN device" },
	{ 38, "parameter server" },
	{ 39, "audio policy device" },
	{ 40, "Bluetooth device" },
	{ 41, "GPIO device" },
	{ 42, "RDMA device" },
	{ 43, "camera device" },
	{ 44, "ISM device" },
	{ 45, "SPI controller" },
	{ 46, "TEE device" },
	{ 47, "CPU balloon device" },
	{ 48, "media device" },
	{ 49, "USB controller" },
};

static const struct name reserved_features[] = {
	{ 24, "NOTIFY_ON_EMPTY" },	/* legacy, as is ANY_LAYOUT */
	{ 27, "ANY_LAYOUT" },
	{ VIRTIO_F_INDIRECT_DESC, "INDIRECT_DESC" },
	{ VIRTIO_F_EVENT_IDX, "EVENT_IDX" },
	{ VIRTIO_F_VERSION_1, "VERSION_1" },
	{ VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM" },
	{ VIRTIO_F_RING_PACKED, "RING_PACKED" },
	{ VIRTIO_F_IN_ORDER, "IN_ORDER" },
	{ VIRTIO_F_ORDER_PLATFORM, "ORDER_PLATFORM" },
	{ VIRTIO_F_SR_IOV, "SR_IOV" },
	{ VIRTIO_F_NOTIFICATION_DATA, "NOTIFICATION_DATA" },
	{ VIRTIO_F_NOTIF_CONFIG_DATA, "NOTIF_CONFIG_DATA" },
	{ VIRTIO_F_RING_RESET, "RING_RESET" },
	{ VIRTIO_F_ADMIN_VQ, "ADMIN_VQ" },
	{ VIRTIO_F_SUSPEND, "SUSPEND" },
};

static const struct name net_features[] = {
	{ 0, "CSUM" }, { 1, "GUEST_CSUM" }, { 2, "CTRL_GUEST_OFFLOADS" }, { 3, "MTU" },
	{ 5, "MAC" }, { 7, "GUEST_TSO4" }, { 8, "GUEST_TSO6" }, { 9, "GUEST_ECN" },
	{ 10, "GUEST_UFO" }, { 11, "HOST_TSO4" }, { 12, "HOST_TSO6" }, { 13, "HOST_ECN" },
	{ 14, "HOST_UFO" }, { 15, "MRG_RXBUF" }, { 16, "STATUS" }, { 17, "CTRL_VQ" },
	{ 18, "CTRL_RX" }, { 19, "CTRL_VLAN" }, { 20, "CTRL_RX_EXTRA" },
	{ 21, "GUEST_ANNOUNCE" }, { 22, "MQ" }, { 23, "CTRL_MAC_ADDR" },
	{ 50, "DEVICE_STATS" }, { 51, "HASH_TUNNEL" }, { 52, "VQ_NOTF_COAL" },
	{ 53, "NOTF_COAL" }, { 54, "GUEST_USO4" }, { 55, "GUEST_USO6" }, { 56, "HOST_USO" },
	{ 57, "HASH_REPORT" }, { 59, "GUEST_HDRLEN" }, { 60, "RSS" }, { 61, "RSC_EXT" },
	{ 62, "STANDBY" }, { 63, "SPEED_DUPLEX" },
};

static const struct name block_features[] = {
	{ 1, "SIZE_MAX" }, { 2, "SEG_MAX" }, { 4, "GEOMETRY" }, { 5, "RO" }, { 6, "BLK_SIZE" },
	{ 9, "FLUSH" }, { 10, "TOPOLOGY" }, { 11, "CONFIG_WCE" }, { 12, "MQ" },
	{ 13, "DISCARD" }, { 14, "WRITE_ZEROES" }, { 15, "LIFETIME" }, { 16, "SECURE_ERASE" },
	{ 17, "ZONED" },
};

static const struct name console_features[] = {
	{ 0, "SIZE" }, { 1, "MULTIPORT" }, { 2, "EMERG_WRITE" },
};

static const struct name balloon_features[] = {
	{ 0, "MUST_TELL_HOST" }, { 1, "STATS_VQ" }, { 2, "DEFLATE_ON_OOM" },
	{ 3, "FREE_PAGE_HINT" }, { 4, "PAGE_POISON" }, { 5, "PAGE_REPORTING" },
};

static const struct name scsi_features[] = {
	{ 0, "INOUT" }, { 1, "HOTPLUG" }, { 2, "CHANGE" }, { 3, "T10_PI" },
};

static const struct name vsock_features[] = {
	{ 0, "STREAM" }, { 1, "SEQPACKET" }, { 2, "NO_IMPLIED_STREAM" },
};

static const struct {
	uint32_t device_id;
	const struct name *names;
	size_t count;
} device_features[] = {
	{ 1, net_features, ARRAY_SIZE(net_features) },
	{ 2, block_features, ARRAY_SIZE(block_features) },
	{ 3, console_features, ARRAY_SIZE(console_features) },
	{ 5, balloon_features, ARRAY_SIZE(balloon_features) },
	{ 8, scsi_features, ARRAY_SIZE(scsi_features) },
	{ 19, vsock_features, ARRAY_SIZE(vsock_features) },
};

static const char *find(const struct name *names, size_t count, uint32_t number)
{
	for (size_t i = 0; i < count; i++)
		if (names[i].number == number)
			return names[i].name;
	return NULL;
}

const char *virtio_device_name(uint32_t device_id)
{
	const char *name = find(devices, ARRAY_SIZE(devices), device_id);

	return name ? name : "unknown device";
}

const char *virtio_feature_name(uint32_t device_id, unsigned int bit)
{
	const char *name = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(device_features) && !name; i++)
		if (device_features[i].device_id == device_id)
			name = find(device_features[i].names, device_features[i].count, bit);
	return name ? name : find(reserved_features, ARRAY_SIZE(reserved_features), bit);
}
