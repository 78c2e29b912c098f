#!/bin/sh
# Runs after customize.sh, with the same argument: adds the user that programs of E2B's
# clients run as. The files are written as a whole line each, because useradd writes the
# day of the build.
set -eu
root=$1

echo 'user:x:1000:1000::/home/user:/bin/bash' >>"$root/etc/passwd"
echo 'user:x:1000:' >>"$root/etc/group"
echo 'user:*:19000:0:99999:7:::' >>"$root/etc/shadow"
echo 'user:!::' >>"$root/etc/gshadow"
cp -a "$root/etc/skel" "$root/home/user"
chown -R 1000:1000 "$root/home/user"
chmod 755 "$root/home/user"

echo 'user ALL=(ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/90-user"
chmod 440 "$root/etc/sudoers.d/90-user"
