# In the guest:   sh -eux blk.sh SHARE FIO_OPTION...
#
# Makes a file system on the one virtio disk, lets fio write, read and verify on it, copies a file
# onto it, and looks whether all is sound. What it finds is in SHARE.
share=$1
shift
disk=/dev/vda
folder=/run/tmp/disk
mkdir "$folder"
# fio writes where it is.
cd /run/tmp

for file in serial size cache_type queue/logical_block_size queue/discard_max_bytes; do
	echo "$file $(cat "/sys/block/vda/$file")"
done >"$share/facts.txt"

mkfs.ext4 -q -F "$disk"
mount -t ext4 "$disk" "$folder"

# What Linux counts of the disk: requests that it has completed, and those in flight.
(
	set +x
	while read -r counters </sys/block/vda/stat; do
		echo "$counters" >>"$share/counters.txt"
		sleep 0.05
	done
) &
counting=$!

# Each job is bound to a CPU, which has a queue of its own. Blocks are verified soon after they
# were written, between other reads and writes, and all of them once more at the end.
set -- --name=verified --directory="$folder" \
	--numjobs=4 --group_reporting --cpus_allowed=0-3 --cpus_allowed_policy=split \
	--rw=randrw --bsrange=4k-64k --ioengine=libaio --iodepth=32 --direct=1 \
	--verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 "$@"
# The files, which are there then.
fio --create_only=1 "$@"
sync

touch "$share/fio.started"
fio --output="$share/fio.json" --output-format=json "$@"
touch "$share/fio.ended"
kill "$counting"
grep virtio /proc/interrupts >"$share/interrupts.txt"

cp "$share/known" "$folder/known"
(cd "$folder" && sha256sum known verified.*) >"$share/sums.txt"

# What is deleted is given back to the host.
dd if=/dev/zero of="$folder/gone" bs=1M count=64 conv=fsync
rm "$folder/gone"
sync
fstrim "$folder"
umount "$folder"

# The driver gives the disk up, and finds it again.
device=$(basename "$(readlink /sys/block/vda/device)")
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/unbind
echo "$device" >/sys/bus/virtio/drivers/virtio_blk/bind
e2fsck -f -n "$disk" >"$share/fsck.txt"
