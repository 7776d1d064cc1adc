# In the guest:   sh -eux vsock.sh SHARE MIB CONNECTIONS
#
# Sends MIB to the program at port 5000 of the host's, and a message to the one at port 5001. Takes
# what the host sends to port 1234, and sends back what it sends to port 1235, by a program for each
# of the host's CONNECTIONS. What it finds is in SHARE.
share=$1
mebibytes=$2
cd /run/tmp

head -c "${mebibytes}M" /dev/urandom >known
sha256sum <known >"$share/known.txt"
socat -b 65536 -u - VSOCK-CONNECT:2:5000 <known
rm known

# struct sockaddr_vm, without its family: port 5001 of CID 2.
address=x0000891300000200000000000000
(
	printf 'a message'
	sleep 1
) | socat -t 60 - "SOCKET-CONNECT:40:0:$address,type=5" >"$share/answer.txt"

if socat - VSOCK-CONNECT:2:9 </dev/null 2>"$share/refused.txt"; then
	exit 1
fi

# Nothing is read of it until the host has seen that nothing more goes.
(socat -b 65536 -u VSOCK-LISTEN:1234 - | {
	until [ -e "$share/full" ]; do
		sleep 0.1
	done
	sha256sum >"$share/received.txt"
}) &
one=$!
socat VSOCK-LISTEN:1235,fork,backlog=64 PIPE >/dev/null 2>&1 &
many=$!
touch "$share/listening"
wait $one
until [ -e "$share/enough" ]; do
	sleep 0.1
done
kill $many
