# In the guest:   sh -eux scsi.sh SHARE
#
# Lets fio write, read and verify on the disk of the SCSI host with four jobs, each bound to a CPU,
# which has a queue of its own; mounts the disc; and commands the disk as sg3-utils do. Then the host
# plugs a disk in at LUN 5, and out again. What it finds is in SHARE.
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
	sg_readcap -l "$disk"
	sg_luns "$disk"
	sg_modes -a "$disk"
	sg_opcodes "$disk"
} >"$share/facts.txt"
# 64 blocks of the same, of which 8 are given back.
yes | head -c 512 >same
sg_write_same --16 --lba=$((100 << 11)) --num=64 --in=same "$disk"
sg_unmap --force --lba=$(((100 << 11) + 16)) --num=8 "$disk"
sg_sync "$disk"
dd if=/dev/urandom of="$disk" bs=1M seek=70 count=8 oflag=direct
blkdiscard -o $((70 << 20)) -l $((8 << 20)) "$disk"
sg_reset --device "$disk"
dd if="$disk" of=/dev/null bs=4k count=10 iflag=direct

plugged='/sys/class/scsi_disk/*:0:0:5'
touch "$share/ready"
until ls -d $plugged/device/block/*; do
	sleep 0.1
done
name=$(basename $plugged/device/block/*)
head -c 7 "/dev/$name" >"$share/plugged.txt"
touch "$share/seen"
while ls -d $plugged; do
	sleep 0.1
done
[ -e "/sys/block/$name" ] || touch "$share/gone"
