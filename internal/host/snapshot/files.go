//go:build linux

// Package snapshot keeps the files of snapshots, in a directory for each: what
// the driver saved of the machine, and copies of the memory and the disk of its
// guest, with checksums.
//
// A snapshot that passes, for one fork, keeps its memory in RAM instead. What
// snapshots there are, and which of them count, is internal/snapshot's; what
// lies in a directory is in docs/reference/data-directory.md. Start at [Files].
package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vmm"
)

var _ snapshot.Files = (*Files)(nil)

// Names of the files in a snapshot's directory, beside those of vmm.Saved.
const (
	memoryName  = "memory"
	memoryIndex = "memory.json"
	diskName    = "disk.img"
	diskIndex   = "disk.json"
)

// The parts, as errors call them.
const (
	memory = sparse.Part("memory")
	disk   = sparse.Part("disk")
)

// gone comes before a number in the name of a directory that is being removed.
const gone = ".gone."

// ReserveBytes is what a snapshot leaves free on a host's disk.
const ReserveBytes = 512 << 20

// Files keeps the directories of snapshots below one root.
type Files struct {
	root     string
	reserve  int64              // bytes
	removing sync.WaitGroup     // of what was removed
	clearing chan struct{}      // capacity 1; full while somebody deletes what was removed
	reading  singleflight.Group // by snapshot id: of memory that is to be held

	mu   sync.Mutex       // guards held and what it holds
	held map[string]*held // by snapshot id
}

// held is the memory of a snapshot in RAM, from when somebody wants it there.
type held struct {
	users   int
	base    *os.File   // nil: it is not there yet
	takes   vmm.Shared // about, until it is there
	passing bool       // it has no memory elsewhere
}

// Open returns the files below root, which it makes, and removes what an
// earlier daemon has not come to remove. Snapshots leave reserve bytes of the
// disk free.
func Open(root string, reserve int64) (*Files, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for snapshots: %w", err)
	}
	f := &Files{root: root, reserve: reserve, clearing: make(chan struct{}, 1), held: map[string]*held{}}
	f.removing.Go(f.removeGone)
	return f, nil
}

// Close waits until what was removed is gone, and drops what is
// held in RAM.
func (f *Files) Close() error {
	f.removing.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	var faults []error
	for id, m := range f.held {
		if m.base != nil {
			faults = append(faults, m.base.Close())
		}
		delete(f.held, id)
	}
	return errors.Join(faults...)
}

// Dir implements snapshot.Files.
func (f *Files) Dir(id string) string { return filepath.Join(f.root, id) }

// Prepare implements snapshot.Files.
func (f *Files) Prepare(id string, bytes int64) error {
	if !isID(id) {
		return fmt.Errorf("cannot make the directory of a snapshot: %q is no id", id)
	}
	if err := f.requireRoom("a snapshot", bytes); err != nil {
		return err
	}
	if err := os.Mkdir(f.Dir(id), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of a snapshot: %w", full(err))
	}
	return nil
}

// requireRoom finds out whether the disk can take so many bytes beside the reserve.
func (f *Files) requireRoom(what string, bytes int64) error {
	var host unix.Statfs_t
	if err := unix.Statfs(f.root, &host); err != nil {
		return fmt.Errorf("cannot tell the free disk space: %w", err)
	}
	if free := int64(host.Bavail) * host.Bsize; free < bytes+f.reserve {
		return errs.New(errs.Exhausted, "disk_full",
			"the host's disk has %d MiB left; %s needs about %d of them, and %d are kept for the host itself",
			free>>20, what, bytes>>20, f.reserve>>20).
			WithHint(roomHint).WithCause(errs.Shortage{Bytes: bytes + f.reserve - free})
	}
	return nil
}

// Remove implements snapshot.Files. Large files take a file system its time to
// remove, and nobody has to wait for it.
func (f *Files) Remove(id string) error {
	if !isID(id) {
		return fmt.Errorf("cannot remove a snapshot: %q is no id", id)
	}
	f.drop(id)
	err := os.Rename(f.Dir(id), fmt.Sprintf("%s%s%d", f.Dir(id), gone, time.Now().UnixNano()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove a snapshot: %w", err)
	}
	f.removing.Go(f.removeGone)
	return nil
}

// Flush implements snapshot.Files.
func (f *Files) Flush() { f.removeGone() }

// removeGone deletes the directories that were set aside for it. What cannot be
// deleted is tried again by the next one.
func (f *Files) removeGone() {
	f.clearing <- struct{}{}
	defer func() { <-f.clearing }()
	all, _ := filepath.Glob(filepath.Join(f.root, snapshot.IDPrefix+"*"+gone+"*")) // the pattern is well formed
	for _, path := range all {
		_ = os.RemoveAll(path)
	}
}

// List implements snapshot.Files.
func (f *Files) List() (ids []string, err error) {
	entries, err := os.ReadDir(f.root)
	if err != nil {
		return nil, fmt.Errorf("cannot list the files of snapshots: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// isID reports whether a name has the form of an id, so that nothing else is
// ever taken for a snapshot.
func isID(name string) bool {
	rest, ok := strings.CutPrefix(name, snapshot.IDPrefix)
	return ok && rest != "" && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

const roomHint = "delete snapshots, VMs or images, or give the data directory more room"

// full turns "no space left" into words for whoever asked.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.New(errs.Exhausted, "disk_full", "the host's disk is full").WithHint(roomHint).WithCause(err)
	}
	return err
}

// discard removes files of a directory that are not whole.
func discard(dir string, names ...string) error {
	var faults []error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}
