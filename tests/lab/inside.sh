#!/bin/sh
# What virtme-ng runs in the lab:   inside.sh MOUNTED SHARE KERNEL MODULE...
#
# SHARE is the host's folder that is mounted, read-write, at MOUNTED; KERNEL the unpacked package.
#
# The root that virtme-ng mounts asks the host for every page of every file, every time. So the
# host's files are mounted once more, cached, and SHARE/command.sh runs in there. Its exit status
# is left in SHARE/status.
set -u
mounted=$1
share=$2
kernel=$3
shift 3
root=/mnt

echo "lab: $(uname -r), up for $(cut -d ' ' -f 1 /proc/uptime) s"
modprobe -d "$root$kernel" -a "$@"

source=$(grep -F " $root 9p " /proc/mounts)
umount "$root"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 "${source%% *}" "$root" ||
	exit 1
for folder in /dev /proc /sys; do
	mount --rbind "$folder" "$root$folder"
done
# Not over /tmp, where the repository may be.
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/tmp"
mount --bind "$mounted" "$root$share"
echo "lab: the command starts"
chroot "$root" env -i HOME=/run/tmp TMPDIR=/run/tmp LANG=C.UTF-8 TERM=dumb \
	PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	sh "$share/command.sh" >"$mounted/output.txt" 2>&1
echo $? >"$mounted/status.new"
mv "$mounted/status.new" "$mounted/status"
echo "lab: up for $(cut -d ' ' -f 1 /proc/uptime) s"
