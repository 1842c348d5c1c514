#!/bin/sh
# Builds the guest that tests and the demo boot: Debian's cloud kernel and an initramfs of busybox and a few drivers.
# usage: build.sh DIRECTORY      leaves DIRECTORY/vmlinuz and DIRECTORY/initramfs.img, readable by everyone
#
# Needs apt (as root or not), dpkg-deb, cpio, busybox-static, and gcc with libc6-dev. Nothing is installed on this host. The kernel package is
# unpacked once into DIRECTORY/kernel, and again when the list of drivers changes; remove that to take a newer one. The package itself
# stays there as kernel/package.deb: the virtual lab (tests/lab/image.py) wants all of its drivers.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

# In the order of their dependencies: the guest has no modprobe database. ext4 and ipv6 are built into this kernel.
# The network first: its carrier then is up before its addresses are set, or the kernel holds packets back for a second.
modules="
drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci_modern_dev
drivers/virtio/virtio_pci net/core/failover drivers/net/net_failover drivers/net/virtio_net drivers/block/virtio_blk
drivers/virtio/virtio_balloon drivers/char/virtio_console drivers/char/hw_random/virtio-rng
drivers/misc/pvpanic/pvpanic drivers/misc/pvpanic/pvpanic-pci drivers/acpi/button drivers/input/evdev
"

# Not loaded at boot: each costs time under TCG. `load-drivers cdrom` does, in this order.
cdrom_modules="
drivers/scsi/scsi_common drivers/scsi/scsi_mod drivers/cdrom/cdrom drivers/scsi/sr_mod drivers/scsi/virtio_scsi
"
# Loaded only where the firmware is UEFI, see init.
efi_modules="fs/efivarfs/efivarfs"

fetch_kernel() {
	work=$(mktemp -d "$out/fetch.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	# The metapackage names the present kernel.
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-6[^ ]*\)$/\1/p' | head -n 1)
	echo "guest: downloading $package (27 MB)"
	apt-get -q -o APT::Sandbox::User=root download "$package" || return 1
	echo "guest: unpacking the kernel"
	dpkg-deb -x ./linux-image-*.deb tree
	drivers=$(echo tree/lib/modules/*/kernel)
	mkdir kernel
	cp tree/boot/vmlinuz-* kernel/vmlinuz
	cp ./linux-image-*.deb kernel/package.deb
	echo "$modules" "$cdrom_modules" "$efi_modules" >kernel/asked
	for module in $modules; do
		cp "$drivers/$module.ko" kernel/
		echo "${module##*/}"
	done >kernel/order
	for module in $cdrom_modules; do
		cp "$drivers/$module.ko" kernel/
		echo "${module##*/}"
	done >kernel/cdrom
	for module in $efi_modules; do cp "$drivers/$module.ko" kernel/; done
	rm -rf "$out/kernel"
	mv kernel "$out/kernel"
	cd "$out"
	rm -rf "$work"
	trap - EXIT
}

asked=$(cat "$out/kernel/asked" 2>/dev/null || true)
if [ "$asked" != "$(echo "$modules" "$cdrom_modules" "$efi_modules")" ] || ! [ -f "$out/kernel/package.deb" ]; then
	if ! (fetch_kernel); then
		echo "guest: refreshing the package lists"
		apt-get -q update
		(fetch_kernel)
	fi
fi

echo "guest: packing the initramfs"
root=$(mktemp -d "$out/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/etc/acpi/PWRF" "$root/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here"/bin/* "$root/bin/"
gcc -static -Os -s -Wall -Wextra -Werror -o "$root/bin/send-frames" "$here/send-frames.c"
mkdir -p "$root/www/cgi-bin"
mv "$root/bin/page" "$root/www/cgi-bin/index.cgi"
mv "$root/bin/power-button" "$root/etc/acpi/PWRF/00000080" # the name that busybox acpid gives the power key
cp "$here/init" "$root/init"
cp "$here/inittab" "$root/etc/inittab"
cp "$out"/kernel/*.ko "$out/kernel/order" "$out/kernel/cdrom" "$root/modules/"
# Not compressed: under TCG unpacking would cost more than reading. The same input gives the same bytes.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R 0:0) >"$out/initramfs.new"
cp "$out/kernel/vmlinuz" "$out/vmlinuz.new"
chmod 644 "$out/initramfs.new" "$out/vmlinuz.new"
mv "$out/vmlinuz.new" "$out/vmlinuz"
mv "$out/initramfs.new" "$out/initramfs.img" # last: make takes it for the whole image
