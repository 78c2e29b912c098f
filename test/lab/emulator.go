package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// emulatorSuite is the release of Debian whose QEMU runs the host. This machine may have
// an older one, and Debian 12's QEMU 7.2 does not emulate a host well enough: now and
// then a guest's page walk ends at an address of the host, which stops or resets the
// guest (after some 500 to 1,500 commands in one, gone with npt=0), and a processor of
// the host hangs.
const emulatorSuite = "trixie"

// Emulator is a QEMU in a root directory of its own.
type Emulator struct{ root string }

// BuildEmulator makes the root directory below dir, or finds it there.
func BuildEmulator(ctx context.Context, dir string) (*Emulator, error) {
	e := &Emulator{root: filepath.Join(dir, "qemu-"+emulatorSuite)}
	if _, err := os.Stat(e.root); err == nil {
		return e, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	tmp := e.root + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	args := append(slim("minbase"), "--include=qemu-system-x86", emulatorSuite, tmp)
	if err := run(ctx, "mmdebstrap", args...); err != nil {
		return nil, fmt.Errorf("cannot install QEMU: %w", err)
	}
	return e, os.Rename(tmp, e.root)
}

// slim is what all installations of Debian have in common: no translations, no
// documentation.
func slim(variant string) []string {
	return []string{
		"--quiet", "--mode=root", "--variant=" + variant, "--format=directory",
		`--aptopt=Acquire::Languages "none"`, "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
	}
}

// command returns a command that runs QEMU. It sees the files below shared at the same
// paths as this process, and this machine's devices.
func (e *Emulator) command(shared string, args ...string) (*exec.Cmd, error) {
	for _, dir := range []string{"/dev", shared} {
		if err := e.share(dir); err != nil {
			return nil, fmt.Errorf("cannot give %s to QEMU: %w", dir, err)
		}
	}
	cmd := exec.Command("/usr/bin/qemu-system-x86_64", args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: e.root}
	return cmd, nil
}

// share mounts a directory at the same path below the root, once; the sandbox's end
// unmounts it.
func (e *Emulator) share(dir string) error {
	target := filepath.Join(e.root, dir)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), " "+target+" ") {
		return nil
	}
	return errors.Join(os.MkdirAll(target, 0o755), unix.Mount(dir, target, "", unix.MS_BIND, ""))
}
