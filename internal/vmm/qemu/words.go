//go:build linux && amd64

package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/vmm"
)

// What QEMU complains of in vain: that what was saved does not describe itself,
// which our manifest does, and that memory which a guest gives back is a base's
// (balloonArguments).
var nothing = []string{"Expected vmdescription section, but got 0", "ram_block_discard_range: Failed to fallocate"}

// newWords starts a new file in dir and returns the end to write to.
func newWords(dir string) (*jail.Words, *os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, vmm.LogName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the VMM's log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return jail.CopyWords(r, file, 0, nothing...), w, nil
}

// findWords takes up listening to a process that an earlier daemon started: a
// pipe can be opened again through the process that writes to it.
func findWords(dir string, pid int) (*jail.Words, error) {
	file, err := os.OpenFile(filepath.Join(dir, vmm.LogName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	r, err := openPipe(filepath.Join("/proc", strconv.Itoa(pid), "fd", "2"))
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return jail.CopyWords(r, file, st.Size(), nothing...), nil
}

// openPipe opens a descriptor of another process, if it is a pipe. What it is
// is found out before it is opened for reading: the process, should a guest
// have taken it over, may have put anything there.
func openPipe(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, errors.New("the process's standard error is not the pipe it was started with")
	}
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
}
