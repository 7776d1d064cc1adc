"""The configuration spaces as a driver sees them: each field, its width, and what it depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from virtiopy.check.catalogue import FOLDER
from virtiopy.spec import DeviceId
from virtiopy.statements.index import load_index
from virtiopy.statements.terms import Condition

_BITS = load_index(FOLDER).features


@dataclass(slots=True, frozen=True)
class Field:
    """A field at `offset` of the configuration space, of `width` bytes.

    `length` is in bytes, more than `width` for an array. With a `condition` the field is there
    where the device offers these features only.
    """

    name: str
    offset: int
    width: int
    length: int
    condition: Condition | None = None


def _fields(*rows: tuple[str, int, int] | tuple[str, int, int, str]) -> list[Field]:
    # Each row: name, width, elements, and on what the field depends.
    offset = 0
    fields = []
    for name, width, elements, *rest in rows:
        condition = Condition.parse(rest[0], _BITS) if rest else None
        if name:
            fields.append(Field(name, offset, width, width * elements, condition))
        offset += width * elements
    return fields


def _blk(feature: str) -> str:
    return f"VIRTIO_BLK_F_{feature}"


#: Each device's fields, in order (5.1.4 to 5.6.4, 5.10.4, 5.11.4). A row without a name is a gap.
FIELDS: Mapping[DeviceId, Sequence[Field]] = {
    DeviceId.NETWORK: _fields(
        ("mac", 1, 6, "VIRTIO_NET_F_MAC"),
        ("status", 2, 1, "VIRTIO_NET_F_STATUS"),
        ("max_virtqueue_pairs", 2, 1, "VIRTIO_NET_F_MQ or VIRTIO_NET_F_RSS"),
        ("mtu", 2, 1, "VIRTIO_NET_F_MTU"),
        ("speed", 4, 1, "VIRTIO_NET_F_SPEED_DUPLEX"),
        ("duplex", 1, 1, "VIRTIO_NET_F_SPEED_DUPLEX"),
        ("rss_max_key_size", 1, 1, "VIRTIO_NET_F_RSS or VIRTIO_NET_F_HASH_REPORT"),
        ("rss_max_indirection_table_length", 2, 1, "VIRTIO_NET_F_RSS"),
        ("supported_hash_types", 4, 1, "VIRTIO_NET_F_RSS or VIRTIO_NET_F_HASH_REPORT"),
        ("supported_tunnel_types", 4, 1, "VIRTIO_NET_F_HASH_TUNNEL"),
    ),
    DeviceId.BLOCK: _fields(
        ("capacity", 8, 1),
        ("size_max", 4, 1, _blk("SIZE_MAX")),
        ("seg_max", 4, 1, _blk("SEG_MAX")),
        ("geometry.cylinders", 2, 1, _blk("GEOMETRY")),
        ("geometry.heads", 1, 1, _blk("GEOMETRY")),
        ("geometry.sectors", 1, 1, _blk("GEOMETRY")),
        ("blk_size", 4, 1, _blk("BLK_SIZE")),
        ("topology.physical_block_exp", 1, 1, _blk("TOPOLOGY")),
        ("topology.alignment_offset", 1, 1, _blk("TOPOLOGY")),
        ("topology.min_io_size", 2, 1, _blk("TOPOLOGY")),
        ("topology.opt_io_size", 4, 1, _blk("TOPOLOGY")),
        ("writeback", 1, 1, _blk("CONFIG_WCE")),
        ("", 1, 1),
        ("num_queues", 2, 1, _blk("MQ")),
        ("max_discard_sectors", 4, 1, _blk("DISCARD")),
        ("max_discard_seg", 4, 1, _blk("DISCARD")),
        ("discard_sector_alignment", 4, 1, _blk("DISCARD")),
        ("max_write_zeroes_sectors", 4, 1, _blk("WRITE_ZEROES")),
        ("max_write_zeroes_seg", 4, 1, _blk("WRITE_ZEROES")),
        ("write_zeroes_may_unmap", 1, 1, _blk("WRITE_ZEROES")),
        ("", 1, 3),
        ("max_secure_erase_sectors", 4, 1, _blk("SECURE_ERASE")),
        ("max_secure_erase_seg", 4, 1, _blk("SECURE_ERASE")),
        ("secure_erase_sector_alignment", 4, 1, _blk("SECURE_ERASE")),
        ("zoned.zone_sectors", 4, 1, _blk("ZONED")),
        ("zoned.max_open_zones", 4, 1, _blk("ZONED")),
        ("zoned.max_active_zones", 4, 1, _blk("ZONED")),
        ("zoned.max_append_sectors", 4, 1, _blk("ZONED")),
        ("zoned.write_granularity", 4, 1, _blk("ZONED")),
        ("zoned.model", 1, 1, _blk("ZONED")),
    ),
    DeviceId.CONSOLE: _fields(
        ("cols", 2, 1, "VIRTIO_CONSOLE_F_SIZE"),
        ("rows", 2, 1, "VIRTIO_CONSOLE_F_SIZE"),
        ("max_nr_ports", 4, 1, "VIRTIO_CONSOLE_F_MULTIPORT"),
        ("emerg_wr", 4, 1, "VIRTIO_CONSOLE_F_EMERG_WRITE"),
    ),
    DeviceId.ENTROPY: [],
    DeviceId.BALLOON: _fields(
        ("num_pages", 4, 1),
        ("actual", 4, 1),
        ("free_page_hint_cmd_id", 4, 1, "VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
        ("poison_val", 4, 1, "VIRTIO_BALLOON_F_PAGE_POISON"),
    ),
    DeviceId.SCSI_HOST: _fields(
        ("num_queues", 4, 1),
        ("seg_max", 4, 1),
        ("max_sectors", 4, 1),
        ("cmd_per_lun", 4, 1),
        ("event_info_size", 4, 1),
        ("sense_size", 4, 1),
        ("cdb_size", 4, 1),
        ("max_channel", 2, 1),
        ("max_target", 2, 1),
        ("max_lun", 4, 1),
    ),
    DeviceId.SOCKET: _fields(("guest_cid", 8, 1)),
    DeviceId.FILE_SYSTEM: _fields(
        ("tag", 1, 36),
        ("num_request_queues", 4, 1),
        ("notify_buf_size", 4, 1, "VIRTIO_FS_F_NOTIFICATION"),
    ),
}


def field_at(device: DeviceId, offset: int) -> Field | None:
    """Return the field that holds the byte at `offset` of a device's configuration space."""
    for field in FIELDS.get(device, ()):
        if field.offset <= offset < field.offset + field.length:
            return field
    return None


_PREFIXES = {
    DeviceId.NETWORK: "VIRTIO_NET_F_",
    DeviceId.BLOCK: "VIRTIO_BLK_F_",
    DeviceId.CONSOLE: "VIRTIO_CONSOLE_F_",
    DeviceId.BALLOON: "VIRTIO_BALLOON_F_",
    DeviceId.SCSI_HOST: "VIRTIO_SCSI_F_",
    DeviceId.SOCKET: "VIRTIO_VSOCK_F_",
    DeviceId.FILE_SYSTEM: "VIRTIO_FS_F_",
}


def defined_features(device: DeviceId | None) -> dict[int, str]:
    """Return the names of the feature bits that the specification gives this device (2.2, 6).

    Of a device that is not known these are the ones that all have.
    """
    own = None if device is None else _PREFIXES.get(device)
    prefixes = ("VIRTIO_F_", own or "VIRTIO_F_")
    return {bit: name for name, bit in _BITS.items() if name.startswith(prefixes)}


def feature_bit(name: str) -> int:
    """Return the bit number of a feature by the specification's name."""
    return _BITS[name]


def is_feature(name: str) -> bool:
    """Say whether the specification has a feature of this name, for a device type of ours."""
    return name in _BITS


#: What a feature requires: one at least of these (5.1.3.1, 5.1.3.2).
_NET = "VIRTIO_NET_F_"
REQUIRED_FEATURES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(
        (
            f"{_NET}{name}"
            for name in ("GUEST_TSO4", "GUEST_TSO6", "GUEST_UFO", "GUEST_USO4", "GUEST_USO6")
        ),
        (f"{_NET}GUEST_CSUM",),
    ),
    f"{_NET}GUEST_ECN": (f"{_NET}GUEST_TSO4", f"{_NET}GUEST_TSO6"),
    **dict.fromkeys(
        (f"{_NET}{name}" for name in ("HOST_TSO4", "HOST_TSO6", "HOST_UFO", "HOST_USO")),
        (f"{_NET}CSUM",),
    ),
    f"{_NET}HOST_ECN": (f"{_NET}HOST_TSO4", f"{_NET}HOST_TSO6"),
    **dict.fromkeys(
        (
            f"{_NET}{name}"
            for name in (
                "CTRL_RX",
                "CTRL_VLAN",
                "GUEST_ANNOUNCE",
                "MQ",
                "CTRL_MAC_ADDR",
                "NOTF_COAL",
                "VQ_NOTF_COAL",
                "RSS",
                "CTRL_GUEST_OFFLOADS",
            )
        ),
        (f"{_NET}CTRL_VQ",),
    ),
    f"{_NET}RSC_EXT": (f"{_NET}HOST_TSO4", f"{_NET}HOST_TSO6"),
}
