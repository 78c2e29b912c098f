#!/bin/sh
# Runs on the outer machine with the root of the installed host as its argument. The
# key that may log in lies beside this script.
set -eu
root=$1
here=$(dirname "$0")

install -D -m 0600 "$here/id_ed25519.pub" "$root/root/.ssh/authorized_keys"
printf 'UseDNS no\n' >"$root/etc/ssh/sshd_config.d/lab.conf"
echo lab >"$root/etc/hostname"
printf '127.0.0.1 localhost lab\n::1 localhost\n' >"$root/etc/hosts"
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
printf '/dev/vda / ext4 rw 0 1\n' >"$root/etc/fstab"

cat >"$root/etc/systemd/network/uplink.network" <<'CFG'
[Match]
Name=en* eth*

[Network]
DHCP=ipv4
CFG
chroot "$root" systemctl -q enable systemd-networkd.service
# The first of these that exists gives the host its KVM.
printf 'kvm_amd\nkvm_intel\n' >"$root/etc/modules-load.d/kvm.conf"

# A newer QEMU, which a test upgrades to.
. "$root/etc/os-release"
if [ "$VERSION_CODENAME" = bookworm ]; then
	sources=$root/etc/apt/sources.list.d/backports.list
	sed -n 's/^\(deb .*\) bookworm main.*/\1 bookworm-backports main/p' "$root/etc/apt/sources.list" >"$sources"
	mkdir -p "$root/srv/upgrade/partial"
	chroot "$root" apt-get -q update
	chroot "$root" apt-get -qy -t bookworm-backports -o Dir::Cache::archives=/srv/upgrade \
		install --download-only --no-install-recommends qemu-system-x86
	rm "$sources"
fi

# Tests start the firewalls that they are about.
chroot "$root" systemctl -q disable firewalld.service ufw.service nftables.service docker.service docker.socket containerd.service
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer getty@tty1.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
mkdir -p "$root/var/log/journal" "$root/media/cargo"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
