//go:build linux && amd64

package firecracker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Firecracker takes a TAP by its name only. So the one that was handed to us is
// made to last without a holder, given to the process's user, and let go of;
// once the process is gone, it is made to end.

// lendTAP prepares a TAP for the process's user and returns its name, which it
// also writes down in dir. It does not close the file.
func lendTAP(tap *os.File, uid int, dir string) (string, error) {
	conn, err := tap.SyscallConn()
	if err != nil {
		return "", err
	}
	var name string
	var failed error
	err = conn.Control(func(fd uintptr) { name, failed = lend(int(fd), uid) })
	if err = errors.Join(err, failed); err != nil {
		return "", fmt.Errorf("cannot hand over the TAP: %w", err)
	}
	return name, os.WriteFile(filepath.Join(dir, tapFile), []byte(name), 0o600)
}

func lend(fd, uid int) (string, error) {
	req, err := unix.NewIfreq("any")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return "", err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, uid); err != nil {
		return "", err
	}
	return req.Name(), unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
}

// endTAP ends the TAP whose name is written down in dir. One that somebody
// holds is left alone.
func endTAP(dir string) error {
	name, err := os.ReadFile(filepath.Join(dir, tapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open the TUN device: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(string(name))
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req) // makes one that ends with fd, if there is none
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot end the TAP %s: %w", name, err)
	}
	return nil
}
