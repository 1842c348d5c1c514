#!/bin/sh
# A root of its own for Debian's libvirtd and prometheus-libvirt-exporter: the host's /usr with their packages above it, all
# else empty, all in memory. PID 1 of namespaces that bench/libvirt_peer.py makes: whatever it starts ends with it, and
# nothing of the host is written to, not even its control groups, of which this /sys knows nothing.
# usage: libvirt_root.sh DIRECTORY PACKAGES ADDRESS:PORT
set -eu
root=$1/root
listen=$3

mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir -p "$1/upper" "$1/work" "$root/usr" "$root/dev/net" "$root/proc" "$root/sys" "$root/run" "$root/var/lib" "$root/var/log" \
	"$root/var/cache" "$root/tmp" "$root/etc/libvirt" "$root/guests"
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
ln -s /run "$root/var/run"
mount -t overlay -o "lowerdir=/usr,upperdir=$1/upper,workdir=$1/work" overlay "$root/usr"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/net/tun" c 10 200

# None if they are installed on the host. /lib is a link that tar has to follow.
for package in "$2"/*.deb; do
	[ ! -f "$package" ] || dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root"
done

# Debian's own defaults need a user of theirs, AppArmor, virtlogd, control groups, and udev.
printf 'root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nlibvirt:x:64056:\nlibvirt-qemu:x:64055:\n' >"$root/etc/group"
printf '%s\n' 'security_driver = "none"' 'user = "root"' 'group = "root"' 'stdio_handler = "file"' 'cgroup_controllers = []' \
	'namespaces = []' >"$root/etc/libvirt/qemu.conf"
printf '%s\n' 'auth_unix_ro = "none"' 'auth_unix_rw = "none"' >"$root/etc/libvirt/libvirtd.conf"

run() {
	env -i PATH=/usr/sbin:/usr/bin LC_ALL=C chroot "$root" "$@"
}
run libvirtd --config /etc/libvirt/libvirtd.conf &
run prometheus-libvirt-exporter "--web.listen-address=$listen" &
wait
