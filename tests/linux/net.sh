# In the guest:   sh -eux net.sh SHARE ADDRESS BYTES
#
# Pings the host's ADDRESS, and changes how many pairs of virtqueues are used meanwhile; then sends
# it as many random bytes and receives some, both at a time, each on a CPU of its own, and so by a
# pair of virtqueues of its own; and pings it once more when the device has another backend. What
# it finds is in SHARE.
share=$1
host=$2
size=$3
cd /run/tmp

ip link set eth0 up
ip address add 192.0.2.2/24 dev eth0
ping -c 1 -W 5 "$host"
ping -c 40 -i 0.05 -W 5 "$host" >"$share/ping.txt" &
pinger=$!
while kill -0 "$pinger"; do
	ethtool -L eth0 combined 1
	ethtool -L eth0 combined 2
	echo changed >>"$share/changes.txt"
done
wait "$pinger"

head -c "$size" /dev/urandom >sent
taskset -c 0 busybox nc "$host" 5001 <sent &
taskset -c 1 busybox nc "$host" 5002 >received
wait
sha256sum sent received >"$share/sums.txt"
ethtool -S eth0 >"$share/counters.txt"

touch "$share/transferred"
until [ -e "$share/restarted" ]; do sleep 0.1; done
# It may be another tap, with another address of its own.
ip neighbour flush dev eth0
# Until so many are answered, whatever is lost before.
ping -c 5 -i 0.2 -w 30 "$host" >"$share/ping-again.txt"
