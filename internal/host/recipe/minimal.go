package recipe

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// minimalText describes the image beside its packages, for the cache.
const minimalText = `busybox-static as every command; busybox init; a shell on the serial console; version 1`

const inittab = `::sysinit:/bin/mkdir -p /dev/pts /tmp
::sysinit:/bin/mount -t devpts devpts /dev/pts
ttyS0::respawn:/bin/sh -l
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/sync
::shutdown:/bin/umount -a -r
`

func makeMinimal(ctx context.Context, j *job, k kernel, root string) error {
	j.report("fetching busybox")
	unpacked := filepath.Join(j.tmp, "busybox")
	if err := k.apt.download(ctx, "busybox-static", unpacked); err != nil {
		return err
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	content, err := os.ReadFile(filepath.Join(unpacked, "bin/busybox"))
	if err != nil {
		return fmt.Errorf("cannot read busybox: %w", err)
	}
	program := filepath.Join(root, "bin/busybox")
	if err := os.WriteFile(program, content, 0o755); err != nil {
		return err
	}
	if err := linkCommands(ctx, program, root); err != nil {
		return err
	}
	return writeEtc(root)
}

func writeEtc(root string) error {
	files := map[string]string{
		"etc/inittab": inittab,
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":   "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":   "127.0.0.1 localhost\n",
		"etc/profile": "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n",
	}
	for _, name := range slices.Sorted(maps.Keys(files)) { // the image depends on the order
		if err := os.WriteFile(filepath.Join(root, name), []byte(files[name]), 0o644); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(root, "root"), 0o700)
}

// linkCommands makes a link for every command of busybox.
func linkCommands(ctx context.Context, program, root string) error {
	out, err := exec.CommandContext(ctx, program, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("cannot list busybox's commands: %w", err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if name == "bin/busybox" || strings.Contains(name, "..") {
			continue
		}
		link := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/bin/busybox", link); err != nil {
			return err
		}
	}
	return nil
}
