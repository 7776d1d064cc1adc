#!/bin/sh
# What a guest does whose files are all in its memory (tests.linux.ram): it is the command of an
# initramfs of the product's.
#
# Writes, reads and verifies on its disk without end, and pings the host, if it has a network
# device. It says on its console what it has done.
cd /tmp || exit 1
if [ -e /sys/class/net/eth0 ]; then
	ip link set eth0 up
	ip address add 192.0.2.2/24 dev eth0
	ping -i 0.1 192.0.2.1 &
fi
round=0
while true; do
	round=$((round + 1))
	if fio --name=verified --filename=/dev/vda --size=4M --rw=randrw --bsrange=4k-64k \
		--ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_backlog=64 \
		--verify_fatal=1 --verify_state_save=0 --randrepeat=0 >fio.log 2>&1; then
		echo "round $round is sound"
	else
		cat fio.log
		echo "FAILED: round $round"
	fi
done
