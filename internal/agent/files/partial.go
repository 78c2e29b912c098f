package files

import (
	"errors"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// partialPrefix and a number are the name of a partial file, in the directory of the
// file that it will replace. Only a killed agent leaves one; the next write of a single
// file to the directory removes it, or the next file that gets its name.
const partialPrefix = ".hatch-partial-"

// maxPartials limits the concurrent writes to one directory, to the number of requests
// that an agent serves.
const maxPartials = 256

// maxSwept limits the cache of swept directories.
const maxSwept = 4096

// partials are the partial files of this agent. All others were left by a killed one.
type partials struct {
	mu    sync.Mutex
	used  map[slot]bool
	swept map[directory]bool // a cache
}

// directory identifies a directory, independent of its path.
type directory struct{ device, inode uint64 }

// slot is one possible name of a partial file.
type slot struct {
	directory
	number int
}

func (s slot) name() string { return partialPrefix + strconv.Itoa(s.number) }

func (s slot) open(dir *os.File) (fd int, err error) {
	return unix.Openat(int(dir.Fd()), s.name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
}

func identify(dir *os.File) (directory, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(dir.Fd()), &st)
	return directory{st.Dev, st.Ino}, err
}

// partial is a file that is being written.
type partial struct {
	file *os.File
	dir  int
	name string // "" once it has been renamed
	free func()
}

// create creates a partial file in dir, which must stay open until discard.
func (p *partials) create(dir *os.File) (*partial, error) {
	d, err := identify(dir)
	if err != nil {
		return nil, err
	}
	s, number := slot{d, 0}, 0
	for ; number < maxPartials; number++ {
		if s.number = number; p.acquire(s) {
			break
		}
	}
	if number == maxPartials {
		return nil, wire.Refuse(wire.CodeBusy, "%d files are being written in this directory; that is the limit", maxPartials)
	}
	fd, err := s.open(dir)
	if errors.Is(err, unix.EEXIST) { // a killed agent has left it
		_ = unix.Unlinkat(int(dir.Fd()), s.name(), 0)
		fd, err = s.open(dir)
	}
	if err != nil {
		p.free(s)
		return nil, err
	}
	return &partial{
		file: os.NewFile(uintptr(fd), s.name()), dir: int(dir.Fd()), name: s.name(), free: func() { p.free(s) },
	}, nil
}

// sweep removes the partial files of killed agents, once per directory.
func (p *partials) sweep(dir *os.File) error {
	d, err := identify(dir)
	if err != nil {
		return err
	}
	p.mu.Lock()
	swept := p.swept[d]
	p.mu.Unlock()
	if swept {
		return nil
	}
	for number := range maxPartials {
		s := slot{d, number}
		if p.acquire(s) {
			_ = unix.Unlinkat(int(dir.Fd()), s.name(), 0)
			p.free(s)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swept == nil || len(p.swept) == maxSwept {
		p.swept = map[directory]bool{}
	}
	p.swept[d] = true
	return nil
}

// acquire acquires a slot, and reports whether that was free. If so, the caller must
// free it.
func (p *partials) acquire(s slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used[s] {
		return false
	}
	if p.used == nil {
		p.used = map[slot]bool{}
	}
	p.used[s] = true
	return true
}

func (p *partials) free(s slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, s)
}

// discard closes the file, and removes it unless it has been renamed.
func (p *partial) discard() {
	_ = p.file.Close()
	if p.name != "" {
		_ = unix.Unlinkat(p.dir, p.name, 0)
	}
	p.free()
}
