package bridge

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

// iffTunExcl makes TUNSETIFF fail when the interface exists already.
const iffTunExcl = 0x8000

// OpenTAP makes a TAP of this name, in the form that VMMs expect: bare frames
// behind a virtio-net header. It is not persistent: it lives as long as a process
// has the file open. It is down, and on no bridge.
//
// Errors: errs.Conflict with code tap_in_use when an interface of this name exists.
func OpenTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the TUN device: %w", err)
	}
	if err := claim(fd, name); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// The poller of the runtime can watch the device only once it has its interface.
	return os.NewFile(uintptr(fd), "tap:"+name), nil
}

func claim(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("%q is no name for a TAP: %w", name, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | iffTunExcl)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		return errs.New(errs.Conflict, "tap_in_use", "the TAP %s exists already", name).WithCause(err)
	}
	if err != nil {
		return fmt.Errorf("cannot make TAP %s: %w", name, err)
	}
	return nil
}
