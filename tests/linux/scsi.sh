# In the guest:   sh -eux scsi.sh SHARE
#
# Lets fio write, read and verify on the disk of the SCSI host with four jobs, each bound to a CPU,
# which has a queue of its own; mounts the disc; and looks at the disk as sg3-utils do. What it
# finds is in SHARE.
share=$1
until ls -d /sys/class/scsi_disk/*:0:0:0 && [ -e /dev/sr0 ]; do
	sleep 0.1
done
disk=/dev/$(basename /sys/class/scsi_disk/*:0:0:0/device/block/*)
cd /run/tmp

fio --name=verified --filename="$disk" --size=8M --offset_increment=16M \
	--numjobs=4 --group_reporting --cpus_allowed=0-3 --cpus_allowed_policy=split \
	--rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=32 --direct=1 \
	--verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 \
	--output="$share/fio.json" --output-format=json
grep virtio /proc/interrupts >"$share/interrupts.txt"

mkdir disc
mount -t iso9660 /dev/sr0 disc
sha256sum <disc/known >"$share/sum.txt"
umount disc

{
	sg_inq "$disk"
	sg_vpd -p lbpv "$disk"
	sg_opcodes "$disk"
} >"$share/facts.txt"
dd if=/dev/urandom of="$disk" bs=1M seek=70 count=8 oflag=direct
blkdiscard -o $((70 << 20)) -l $((8 << 20)) "$disk"
sg_reset --device "$disk"
dd if="$disk" of=/dev/null bs=4k count=10 iflag=direct
