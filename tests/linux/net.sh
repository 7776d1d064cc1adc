# In the guest:   sh -eux net.sh SHARE ADDRESS BYTES
#
# Pings the host's ADDRESS; then sends it as many random bytes and receives some, both at a time,
# each on a CPU of its own, and so by a pair of virtqueues of its own. What it finds is in SHARE.
share=$1
host=$2
size=$3
cd /run/tmp

ip link set eth0 up
ip address add 192.0.2.2/24 dev eth0
ping -c 20 -i 0.05 -W 5 "$host" >"$share/ping.txt"

head -c "$size" /dev/urandom >sent
taskset -c 0 busybox nc "$host" 5001 <sent &
taskset -c 1 busybox nc "$host" 5002 >received
wait
sha256sum sent received >"$share/sums.txt"
ethtool -S eth0 >"$share/counters.txt"
