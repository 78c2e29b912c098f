package recipe

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// customize runs on the installed system before it is packed.
//
//go:embed customize.sh
var customize string

// packages of the image, beside what apt and Debian's essential set bring.
var packages = []string{
	"systemd-sysv", "dbus", "udev", "kmod", "libpam-systemd", "libnss-myhostname",
	"openssh-server", "cloud-init", "sudo",
	"ca-certificates", "curl", "iproute2", "iputils-ping", "procps", "less",
}

// unwanted is documentation and translations: nobody reads them in a VM.
var unwanted = []string{
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/i18n/locales/*",
	"path-include=/usr/share/i18n/locales/C*", "path-exclude=/usr/share/lintian/*",
}

// debian is a whole Debian 12: systemd, sshd, cloud-init, and the kernel's modules.
func debian() recipe {
	return recipe{
		text:  strings.Join(packages, " ") + strings.Join(unwanted, " ") + customize,
		tools: []tool{{"mmdebstrap", "mmdebstrap"}},
		lay:   layDebian, mib: 472,
	}
}

func layDebian(ctx context.Context, j *job, k kernel, root string) error {
	hook := filepath.Join(j.tmp, "customize.sh")
	if err := os.WriteFile(hook, []byte(customize), 0o700); err != nil {
		return err
	}
	archive := filepath.Join(j.tmp, "root.tar")
	j.say("installing Debian %s; this takes some minutes", suite)
	args := []string{"--mode=root", "--variant=apt", "--format=tar", "--include=" + strings.Join(packages, ","), "--customize-hook=" + hook}
	for _, option := range unwanted {
		args = append(args, "--dpkgopt="+option)
	}
	args = append(args, `--aptopt=Acquire::Languages "none"`, suite, archive)
	for _, name := range []string{"debian.list", "debian.sources"} {
		path := filepath.Join(k.apt.dir, "sources.d", name)
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			args = append(args, path)
		}
	}
	if err := j.run(ctx, "", "mmdebstrap", args...); err != nil {
		return err
	}
	j.say("unpacking")
	return layOut(ctx, j, k, archive, root)
}

// layOut unpacks the archive, whose entries are sorted, and adds the kernel's
// modules, sorted too.
func layOut(ctx context.Context, j *job, k kernel, archive, root string) error {
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := j.run(ctx, "", "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", archive, "-C", root, "--exclude=./dev/*"); err != nil {
		return err
	}
	pack := filepath.Join(j.tmp, "modules.tar")
	if err := j.run(ctx, "", "tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf", pack, "-C", k.tree, "lib/modules"); err != nil {
		return err
	}
	if err := j.run(ctx, "", "tar", "--keep-directory-symlink", "-xpf", pack, "-C", root); err != nil {
		return err
	}
	// Empty, not absent: each VM makes an id of its own at its first boot, and
	// systemd does not take that boot for the first one of a new installation.
	if err := errors.Join(
		os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444),
		ignoreMissing(os.Remove(filepath.Join(root, "etc/resolv.conf"))),
	); err != nil {
		return fmt.Errorf("cannot finish the image: %w", err)
	}
	return os.Remove(archive)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
