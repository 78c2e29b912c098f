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

// ignoredLines mark warnings of QEMU that are expected: saved devices have no
// description of the machine, since the manifest has it; and QEMU cannot free pages
// of a base (arguments).
var ignoredLines = []string{"Expected vmdescription section, but got 0", "ram_block_discard_range: Failed to fallocate"}

// newStderr makes a pipe for a new process's stderr, and copies what comes out of it
// to a new log in dir. It returns the write end.
func newStderr(dir string) (output *jail.Output, w *os.File, err error) {
	file, err := os.OpenFile(filepath.Join(dir, vmm.LogName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the VMM's log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return jail.CopyOutput(r, file, 0, ignoredLines...), w, nil
}

// adoptStderr continues to copy the stderr of a process that an earlier daemon
// started: a pipe can be opened again through the process that writes to it.
func adoptStderr(dir string, pid int) (*jail.Output, error) {
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
	return jail.CopyOutput(r, file, st.Size(), ignoredLines...), nil
}

// openPipe opens a descriptor of another process, if it is a pipe. It checks the type
// before it opens it for reading: a process that a guest has compromised may have put
// any file there.
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
		return nil, errors.New("the process has replaced its stderr: it is not a pipe")
	}
	return os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
}
