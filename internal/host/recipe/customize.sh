#!/bin/sh
# Runs on the host with the root of the installed system as its argument, as
# the last step before it is packed.
set -eu
root=$1

# One data source: the disk that hatchd attaches. The search for others takes
# seconds. Keys of two kinds are enough, and RSA keys take long to make.
cat >"$root/etc/cloud/cloud.cfg.d/90_hatch.cfg" <<'CFG'
datasource_list: [NoCloud, None]
ssh_genkeytypes: [ed25519, ecdsa]
growpart: {mode: "off"}
resize_rootfs: false
apt: {preserve_sources_list: true}
CFG

# The network is set up by what cloud-init writes for systemd-networkd.
chroot "$root" systemctl enable systemd-networkd.service
# Wait for the one interface only, and not for ever; not at all in a VM that
# has none.
mkdir -p "$root/etc/systemd/system/systemd-networkd-wait-online.service.d"
cat >"$root/etc/systemd/system/systemd-networkd-wait-online.service.d/hatch.conf" <<'CFG'
[Unit]
ConditionPathExistsGlob=/sys/class/net/e*

[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
CFG

# Housekeeping that a short-lived machine on an overlay has no use for.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer man-db.timer systemd-pstore.service \
	systemd-firstboot.service getty@tty1.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# The root is mounted by the initramfs.
: >"$root/etc/fstab"
echo localhost >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
echo LANG=C.UTF-8 >"$root/etc/default/locale"

# Each VM makes its own.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"

# Traces of the installation, and caches that differ from build to build.
rm -rf "$root"/var/log/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
	"$root"/var/lib/dpkg/*-old "$root"/var/cache/ldconfig/* "$root"/tmp/* "$root"/run/*
mkdir -p "$root/var/log/journal" && rmdir "$root/var/log/journal"
