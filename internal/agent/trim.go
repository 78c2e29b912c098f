package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// trimInterval is how often the agent trims the VM's disk without a request. ext4
// remembers what it has trimmed, so this costs nothing in an idle guest.
const trimInterval = 10 * time.Minute

// minTrim is the smallest run of free blocks that is trimmed, in bytes: smaller holes
// would only break the host's file into pieces.
const minTrim = 64 << 10

// errNoDiscard is the error for a disk whose VMM cannot give blocks back.
var errNoDiscard = errors.New("the VM's disk does not support discard")

// trimRegularly trims the VM's disk until ctx is done, or it turns out that it cannot be.
func (a *Agent) trimRegularly(ctx context.Context) {
	ticker := time.NewTicker(trimInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if err := a.trim(); err != nil {
			a.log.Info("cannot trim the disk", logkey.Error, err)
			return
		}
	}
}

// Trim implements [wire.TrimHandler].
func (a *Agent) Trim() error {
	if err := a.trim(); err != nil {
		return wire.Refuse(wire.CodeFailed, "%v", err)
	}
	return nil
}

func (a *Agent) trim() error {
	a.trimming.Lock()
	defer a.trimming.Unlock()
	device, err := ownDisk("/")
	if err != nil {
		return err
	}
	dir, err := openFileSystem("/", device)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return trimFileSystem(dir)
}

// ownDisk returns the device of the VM's own disk. Errors: errNoDiscard.
func ownDisk(root string) (device string, err error) {
	cmdline, err := os.ReadFile(filepath.Join(root, "proc/cmdline"))
	if err != nil {
		return "", err
	}
	sys := filepath.Join(root, "sys")
	device, ok := drives.BySerial(sys, filepath.Join(root, "dev"), drives.Order(string(cmdline)))[drives.Own]
	if !ok {
		return "", fmt.Errorf("there is no disk with the serial %s", drives.Own)
	}
	limit, err := os.ReadFile(filepath.Join(sys, "block", filepath.Base(device), "queue/discard_max_bytes"))
	if err == nil && strings.TrimSpace(string(limit)) == "0" {
		err = errNoDiscard
	}
	return device, err
}

// openFileSystem opens the file system on the VM's own disk. That is the root, or the
// upper layer of the overlay that is the root. An overlay cannot be trimmed, and its
// upper layer is mounted where no path leads, so it is mounted again, without a path.
func openFileSystem(root, device string) (*os.File, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("cannot find out what %s is: %w", root, err)
	}
	if st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return os.Open(root)
	}
	mount, err := mountDetached("ext4", device)
	if err != nil {
		return nil, fmt.Errorf("cannot mount %s again: %w", device, err)
	}
	defer func() { _ = unix.Close(mount) }()
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the file system on %s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// mountDetached returns a mount that ends with its last descriptor.
func mountDetached(format, device string) (mount int, err error) {
	fs, err := unix.Fsopen(format, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

// fitrim is the number of the ioctl FITRIM, and trimRange its argument, in bytes.
const fitrim = 0xc0185879

type trimRange struct{ start, length, minimum uint64 }

// trimFileSystem discards all free blocks of a file system. Files that were removed just
// before count as used until the removal is written to the journal.
func trimFileSystem(dir *os.File) error {
	fd := dir.Fd()
	if err := unix.Syncfs(int(fd)); err != nil {
		return fmt.Errorf("cannot sync %s: %w", dir.Name(), err)
	}
	all := trimRange{length: ^uint64(0), minimum: minTrim}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, fitrim, uintptr(unsafe.Pointer(&all))); errno != 0 {
		return fmt.Errorf("cannot trim %s: %w", dir.Name(), errno)
	}
	return nil
}
