package recipe

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// customize runs on the installed system before it is packed.
//
//go:embed customize.sh
var customize string

// packages of the image, beside apt's dependencies and Debian's essential set.
var packages = []string{
	"systemd-sysv", "dbus", "udev", "kmod", "libpam-systemd", "libnss-myhostname",
	"openssh-server", "cloud-init", "sudo",
	"ca-certificates", "curl", "iproute2", "iputils-ping", "procps", "less",
}

// unwanted is documentation and translations, which are of no use in a VM.
var unwanted = []string{
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/i18n/locales/*",
	"path-include=/usr/share/i18n/locales/C*", "path-exclude=/usr/share/lintian/*",
}

// customizeBase runs after customize in the image for E2B's clients.
//
//go:embed base.sh
var customizeBase string

// basePackages are those that programs of E2B's clients expect, beside those above.
var basePackages = []string{"bash", "git", "python3", "python3-pip", "python3-venv", "python-is-python3", "nodejs", "npm", "unzip", "xz-utils"}

// debian is what a system is made of, beside apt's dependencies and Debian's essential
// set.
type debian struct {
	packages []string
	hooks    []string // scripts, in order
}

var (
	plainDebian = debian{packages, []string{customize}}
	baseDebian  = debian{slices.Concat(packages, basePackages), []string{customize, customizeBase}}
)

// text is everything that the result depends on, except package versions.
func (d debian) text() string {
	return strings.Join(d.packages, " ") + strings.Join(unwanted, " ") + strings.Join(d.hooks, "")
}

func (d debian) make(ctx context.Context, j *job, k kernel, root string) error {
	archive := filepath.Join(j.tmp, "root.tar")
	j.report("installing Debian %s; this takes some minutes", suite)
	args := []string{"--mode=root", "--variant=apt", "--format=tar", "--include=" + strings.Join(d.packages, ",")}
	for i, text := range d.hooks {
		hook := filepath.Join(j.tmp, fmt.Sprintf("hook-%d.sh", i))
		if err := os.WriteFile(hook, []byte(text), 0o700); err != nil {
			return err
		}
		args = append(args, "--customize-hook="+hook)
	}
	for _, option := range unwanted {
		args = append(args, "--dpkgopt="+option)
	}
	args = append(args, `--aptopt=Acquire::Languages "none"`, suite, archive, k.apt.sourcesFile())
	if err := j.run(ctx, "", "mmdebstrap", args...); err != nil {
		return err
	}
	j.report("unpacking")
	return unpack(ctx, j, k, archive, root)
}

// unpack unpacks the archive, whose entries are sorted, and adds the kernel's
// modules, sorted too.
func unpack(ctx context.Context, j *job, k kernel, archive, root string) error {
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
	// Empty, not absent: each VM makes its id at its first boot, which systemd must
	// not treat as the first boot of a new installation.
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
