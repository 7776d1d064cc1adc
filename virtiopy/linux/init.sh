#!/bin/busybox sh
# The first process of the guest: what `virtiopy linux` boots. See initramfs.py.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run /tmp /root /mnt
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run

# What follows the time of the boot is measured from here.
while read -r module; do
	insmod "/modules/$module" || echo "virtiopy: the module $module cannot be inserted"
done </modules/order

ip link set lo up
# shellcheck disable=SC1091 # what this boot is to do
. /virtiopy/settings
number=0
for address in $NETWORK; do
	if [ "$address" != - ]; then
		ip address add "$address" dev "eth$number"
		ip link set "eth$number" up
	fi
	number=$((number + 1))
done

# Ends the run with a status: port 0xF4 is the machine's own. Without it the power goes off.
finish() {
	sync
	umount -a -r 2>/dev/null
	printf "\\$(printf %03o "$1")" | dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null
	poweroff -f
}

# Begins (1) or ends (0) a measurement, by port 0xEA.
mark() {
	[ -z "$MEASURE" ] || printf "\\$1" | dd of=/dev/port bs=1 seek=234 conv=notrunc 2>/dev/null
}

# Says how many requests the device has served, and how many interrupts its driver took.
counts() {
	eval "$COUNT"
	awk 'NR == 1 { cpus = NF } /virtio/ { for (i = 2; i <= cpus + 1; i++) n += $i }
		END { print n + 0 }' /proc/interrupts
}

if [ -e /virtiopy/command ]; then
	# No terminal's line ends: the output is the command's own.
	stty -onlcr -echo 2>/dev/null
	if [ -n "$COUNT" ]; then
		# What the marks themselves cost is the first measurement, and is taken out again.
		mark 1
		mark 0
		before=$(counts)
		# What the serial port costs is not the device's: the output waits.
		mark 1
		sh /virtiopy/command </dev/null >/run/output 2>&1
		status=$?
		mark 0
		# shellcheck disable=SC2046 # two numbers, and two more
		set -- $before $(counts)
		cat /run/output
		echo
		echo "# measured requests=$(($3 - $1)) interrupts=$(($4 - $2))"
		finish $status
	fi
	mark 1
	if [ -n "$QUIET_INPUT" ]; then
		sh /virtiopy/command </dev/null
	else
		setsid cttyhack sh /virtiopy/command
	fi
	status=$?
	mark 0
	finish $status
fi
[ -z "$SIZE" ] || stty $SIZE
echo "Linux $(uname -r), started by virtiopy. Leave it with exit, or Ctrl-a x."
setsid cttyhack sh -l
finish 0
