package files

import (
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// A content that is still coming stands in a file of such a name, with a number
// behind it, beside the file that it will replace. Only an agent that was
// killed leaves one; the next write in the same directory removes it.
const partialPrefix = ".hatch-partial-"

// maxPartials is how many contents may be on their way into one directory: all
// that an agent takes.
const maxPartials = 256

// maxSwept bounds the directories that are known to be without leftovers.
const maxSwept = 4096

// partials knows the partial files of this agent. Any other is a leftover.
type partials struct {
	mu    sync.Mutex
	taken map[slot]bool
	swept map[directory]bool // may be forgotten
}

// directory tells one from another, by whatever path it is reached.
type directory struct{ device, inode uint64 }

// slot is one name of a partial file.
type slot struct {
	directory
	number int
}

func (s slot) name() string { return partialPrefix + strconv.Itoa(s.number) }

// partial is a file that is being written.
type partial struct {
	file *os.File
	dir  int
	name string // "" once it is in its place
	free func()
}

// create makes a partial file in dir, which must stay open as long.
func (p *partials) create(dir *os.File) (*partial, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, err
	}
	d := directory{st.Dev, st.Ino}
	p.sweep(dir, d)
	s, ok := p.takeAny(d)
	if !ok {
		return nil, wire.Refuse(wire.CodeBusy, "too many files are being written in this directory")
	}
	fd, err := unix.Openat(int(dir.Fd()), s.name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		p.free(s)
		return nil, err
	}
	return &partial{
		file: os.NewFile(uintptr(fd), s.name()), dir: int(dir.Fd()), name: s.name(), free: func() { p.free(s) },
	}, nil
}

// sweep removes the leftovers of an earlier agent, once in each directory.
func (p *partials) sweep(dir *os.File, d directory) {
	if p.knows(d) {
		return
	}
	for number := range maxPartials {
		s := slot{d, number}
		if p.take(s) {
			_ = unix.Unlinkat(int(dir.Fd()), s.name(), 0)
			p.free(s)
		}
	}
	p.learn(d)
}

func (p *partials) knows(d directory) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swept[d]
}

func (p *partials) learn(d directory) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.swept == nil || len(p.swept) == maxSwept {
		p.swept = map[directory]bool{}
	}
	p.swept[d] = true
}

func (p *partials) takeAny(d directory) (slot, bool) {
	for number := range maxPartials {
		if s := (slot{d, number}); p.take(s) {
			return s, true
		}
	}
	return slot{}, false
}

// take reports whether the slot was free; it is the caller's then.
func (p *partials) take(s slot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[s] {
		return false
	}
	if p.taken == nil {
		p.taken = map[slot]bool{}
	}
	p.taken[s] = true
	return true
}

func (p *partials) free(s slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, s)
}

// moveTo puts the file into its place in the same directory.
func (p *partial) moveTo(name string) error {
	if err := unix.Renameat(p.dir, p.name, p.dir, name); err != nil {
		return err
	}
	p.name = ""
	return nil
}

// discard closes the file, and removes it unless it is in its place.
func (p *partial) discard() {
	_ = p.file.Close()
	if p.name != "" {
		_ = unix.Unlinkat(p.dir, p.name, 0)
	}
	p.free()
}
