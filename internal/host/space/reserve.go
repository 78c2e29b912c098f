//go:build linux

package space

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
)

// A reserve has so many files of so many bytes. A change of hatchd's database takes
// some 10 KiB, and now and then some MiB.
const (
	reserveFiles = 8
	reserveBytes = 4 << 20
)

// margin is what must be free beside a whole reserve before guests that a full disk
// has halted may write again, in bytes.
const margin = 16 << 20

// refillInterval is how often Run looks for room.
const refillInterval = 3 * time.Second

// Reserve is room on the file system of the data directory that hatchd keeps for
// itself, since guests may fill the rest: files without content, each of which is
// removed when a write of hatchd finds no room. One by one, because a guest that still
// runs may take what becomes free. A file is also an inode.
//
// Its methods may be called from several goroutines at once.
type Reserve struct {
	dir string
	log *slog.Logger

	mu          sync.Mutex
	unsupported bool // by the file system: there is no reserve
}

// NewReserve returns the reserve in a data directory, which need not exist yet. It
// changes nothing.
func NewReserve(dataDir string, log *slog.Logger) *Reserve {
	return &Reserve{dir: filepath.Join(dataDir, "reserve"), log: log}
}

func (r *Reserve) path(i int) string { return filepath.Join(r.dir, strconv.Itoa(i)) }

// Release removes a part of the reserve, and reports whether there was one.
func (r *Reserve) Release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range reserveFiles {
		err := os.Remove(r.path(i))
		if err == nil {
			r.log.Warn("the host's disk is full; hatchd uses its reserve", "left", reserveFiles-1-i)
			return true
		}
		if !errors.Is(err, fs.ErrNotExist) {
			r.log.Error("cannot use the reserve", logkey.Error, err)
			return false
		}
	}
	return false
}

// Do calls do again, with a part of the reserve released, as long as its error
// [IsFull].
func (r *Reserve) Do(do func() error) error {
	for {
		err := do()
		if !IsFull(err) || !r.Release() {
			return err
		}
	}
}

// Refill makes the missing files, as long as there is room for them and the margin.
func (r *Reserve) Refill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsupported {
		return nil
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the reserve: %w", err)
	}
	for i := reserveFiles - 1; i >= 0; i-- { // Release removes the first one first
		if _, err := os.Stat(r.path(i)); err == nil {
			continue
		}
		if free, err := Free(r.dir); err != nil || free < reserveBytes+margin {
			return err
		}
		err := allocate(r.path(i))
		if errors.Is(err, unix.EOPNOTSUPP) {
			r.unsupported = true
			r.log.Warn("the file system of the data directory cannot reserve space: if guests fill it, hatchd may not be able to write its database")
			return os.Remove(r.dir)
		}
		if err != nil {
			return Full(fmt.Errorf("cannot make the reserve: %w", err))
		}
	}
	return nil
}

// allocate makes a file of the reserve, or nothing.
func allocate(path string) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return nil
}

// Run refills the reserve whenever there is room, until ctx is done.
func (r *Reserve) Run(ctx context.Context) {
	tick := time.NewTicker(refillInterval)
	defer tick.Stop()
	for {
		if err := r.Refill(); err != nil && !IsFull(err) {
			r.log.Warn("cannot refill the reserve", logkey.Error, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Check returns an error while the disk is full: the reserve is not whole, only little
// is free beside it, or no inodes are.
func (r *Reserve) Check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.unsupported {
		for i := range reserveFiles {
			if _, err := os.Stat(r.path(i)); err != nil {
				return fmt.Errorf("hatchd's reserve on the host's disk is not whole: %w", err)
			}
		}
	}
	dataDir := filepath.Dir(r.dir)
	return errors.Join(Require(dataDir, "hatchd", 0, margin), requireInodes(dataDir))
}

// minInodes is how many inodes must be free.
const minInodes = 16

func requireInodes(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("cannot read the free inodes of %s: %w", dir, err)
	}
	if st.Files > 0 && st.Ffree < minInodes { // some file systems make inodes as needed, and say 0
		return errs.New(errs.Exhausted, "disk_full", "the host's disk has inodes for %d files left", st.Ffree).WithHint(hint)
	}
	return nil
}

// HasRoom reports whether guests that a full disk has halted may write again.
func (r *Reserve) HasRoom() bool { return r.Check() == nil }
