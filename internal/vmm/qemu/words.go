//go:build linux && amd64

package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	maxWords  = 64 << 10 // bytes kept of what one process says
	lastWords = 400      // bytes of its end that go into an error
)

// words is what a process says on stderr: copied to a file of bounded size,
// however much comes. It comes through a pipe, because a process cannot be
// kept from growing a file of its own.
type words struct {
	pipe   *os.File
	copier sync.WaitGroup

	mu   sync.Mutex
	last []byte // the end of what came
}

// newWords starts a new file in dir and returns the end to write to.
func newWords(dir string) (*words, *os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, vmm.LogName), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the VMM's log: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return copyWords(r, file, maxWords), w, nil
}

// findWords takes up listening to a process that an earlier daemon started: a
// pipe can be opened again through the process that writes to it.
func findWords(dir string, pid int) (*words, error) {
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
	return copyWords(r, file, maxWords-st.Size()), nil
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

func copyWords(pipe, file *os.File, room int64) *words {
	w := &words{pipe: pipe}
	w.copier.Go(func() {
		defer func() { _ = file.Close() }()
		buf := make([]byte, 4096)
		for {
			n, err := pipe.Read(buf)
			w.remember(buf[:n])
			kept := min(int64(n), max(room, 0))
			room -= kept
			_, _ = file.Write(buf[:kept]) // a full disk must not stop the process
			if err != nil {
				return
			}
		}
	})
	return w
}

func (w *words) remember(data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = append(w.last, data...)
	if over := len(w.last) - lastWords; over > 0 {
		w.last = append(w.last[:0], w.last[over:]...)
	}
}

// atEnd waits for the end of the process's words and returns the last line of
// them. Precondition: the process is gone.
func (w *words) atEnd() string {
	w.copier.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.TrimSpace(string(bytes.ToValidUTF8(w.last, []byte("?"))))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// close stops listening.
func (w *words) close() {
	_ = w.pipe.Close()
	w.copier.Wait()
}
