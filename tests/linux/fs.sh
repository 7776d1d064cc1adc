# In the guest:   sh -eux fs.sh SHARE FILES
#
# Mounts the file system device of the host's, and asks of it what POSIX says (tests/vm_linux/posix.c,
# compiled, is in SHARE). What it finds is in SHARE. A tree that is in the folder is copied there.
share=$1
mkdir -p /run/tmp/folder
cd /run/tmp

mount -t virtiofs files folder
mkdir folder/checks
"$share/posix" folder/checks "$2" permissions record_locks locks_of_ranges whole_locks mapped \
	rename_over_an_open_file unlink_of_an_open_file hard_links symbolic_links attributes appending \
	sparse odd_names folders times nanoseconds many >"$share/posix.txt"
cp -a folder/tree folder/copy
diff -r folder/tree folder/copy
sync
umount folder
