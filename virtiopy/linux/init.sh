#!/bin/busybox sh
# The first process of the guest: what `virtiopy linux` boots. See initramfs.py. It is run twice where
# a folder of the host's is the root: in the initramfs, and then there, from what is at $here.
export HOME=/root TERM=linux
here=/virtiopy busybox=/bin/busybox
# The kernel gives the first process words of its command line: they say nothing.
if [ -e /run/virtiopy/settings ]; then
	here=/run/virtiopy
	# Programs are the folder's, and busybox's where it has none.
	export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$here/bin
	busybox=$here/bin/busybox
else
	export PATH=/bin:/sbin:/usr/bin:/usr/sbin
fi

begin() {
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

	hostname virtiopy
	ip link set lo up
	number=0
	for address in $NETWORK; do
		if [ "$address" != - ]; then
			ip address add "$address" dev "eth$number"
			ip link set "eth$number" up
		fi
		number=$((number + 1))
	done
}

# Makes the folder with the tag $ROOT_TAG the root, and goes on there.
enter_root() {
	mkdir /folder /changes /new
	case $ROOT in
	keep) options=cache=mmap,rw ;;
	*) options=cache=loose,ro ;;
	esac
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$options" "$ROOT_TAG" /folder ||
		fail "cannot mount its root"
	if [ "$ROOT" = discard ]; then
		mount -t tmpfs tmpfs /changes
		mkdir /changes/upper /changes/work
		mount -t overlay overlay \
			-o lowerdir=/folder,upperdir=/changes/upper,workdir=/changes/work /new ||
			fail "cannot lay its changes over the root"
		for folder in proc sys dev run tmp root; do
			[ -e "/new/$folder" ] || mkdir "/new/$folder"
		done
	else
		mount --bind /folder /new
	fi
	for folder in proc sys dev run; do
		mount --move "/$folder" "/new/$folder"
	done
	mount -t tmpfs tmpfs /new/tmp
	mkdir -p /new/run/virtiopy/bin
	cp -r /virtiopy/. /new/run/virtiopy
	cp /init /new/run/virtiopy/init
	cp /bin/busybox /new/run/virtiopy/bin
	chroot /new /run/virtiopy/bin/busybox --install -s /run/virtiopy/bin
	exec switch_root /new /run/virtiopy/bin/busybox sh /run/virtiopy/init
}

fail() {
	echo "virtiopy: the guest $1"
	finish 125
}

# Ends the run with a status: port 0xF4 is the machine's own. Without it the power goes off.
finish() {
	$busybox sync
	$busybox umount -a -r 2>/dev/null
	printf "\\$(printf %03o "$1")" | $busybox dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null
	$busybox poweroff -f
}

# Begins (1) or ends (0) a measurement, by port 0xEA.
mark() {
	[ -z "$MEASURE" ] || printf "\\$1" | $busybox dd of=/dev/port bs=1 seek=234 conv=notrunc 2>/dev/null
}

# Says how many requests the device has served, and how many interrupts its driver took.
counts() {
	eval "$COUNT"
	$busybox awk 'NR == 1 { cpus = NF } /virtio/ { for (i = 2; i <= cpus + 1; i++) n += $i }
		END { print n + 0 }' /proc/interrupts
}

# shellcheck disable=SC1091 # what this boot is to do
. "$here/settings"
if [ "$here" = /virtiopy ]; then
	begin
	[ -z "$ROOT" ] || enter_root
fi

if [ -e "$here/command" ]; then
	# No terminal's line ends: the output is the command's own.
	$busybox stty -onlcr -echo 2>/dev/null
	if [ -n "$COUNT" ]; then
		# What the marks themselves cost is the first measurement, and is taken out again.
		mark 1
		mark 0
		before=$(counts)
		# What the serial port costs is not the device's: the output waits.
		mark 1
		sh "$here/command" </dev/null >/run/output 2>&1
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
		sh "$here/command" </dev/null
	else
		$busybox setsid $busybox cttyhack sh "$here/command"
	fi
	status=$?
	mark 0
	finish $status
fi
[ -z "$SIZE" ] || $busybox stty $SIZE
echo "Linux $(uname -r), started by virtiopy. Leave it with exit, or Ctrl-a x."
$busybox setsid $busybox cttyhack "$(command -v bash || command -v sh)" -l
finish 0
