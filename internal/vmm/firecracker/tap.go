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

// Firecracker can open a TAP only by its name. So the driver makes the TAP persistent,
// sets the process's user as its owner and closes it; it removes the TAP once the
// process has ended.

// persistTAP makes a TAP persistent for the process's user and returns its name, which
// it also writes to a file in dir. It does not close the TAP.
func persistTAP(tap *os.File, uid int, dir string) (string, error) {
	conn, err := tap.SyscallConn()
	if err != nil {
		return "", err
	}
	var name string
	var failed error
	err = conn.Control(func(fd uintptr) { name, failed = makePersistent(int(fd), uid) })
	if err = errors.Join(err, failed); err != nil {
		return "", fmt.Errorf("cannot make the TAP persistent: %w", err)
	}
	return name, os.WriteFile(filepath.Join(dir, tapFile), []byte(name), 0o600)
}

func makePersistent(fd, uid int) (string, error) {
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

// removeTAP removes the TAP whose name is in dir, unless a process has it open.
func removeTAP(dir string) error {
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
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req) // if the TAP does not exist, this makes one that ends with fd
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the TAP %s: %w", name, err)
	}
	return nil
}
