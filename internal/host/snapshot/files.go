//go:build linux

// Package snapshot stores the files of snapshots, in a directory for each: the
// machine as its driver saved it, and copies of the guest's memory and disk, with
// checksums.
//
// The memory of an ephemeral snapshot is in RAM instead. internal/snapshot decides
// which snapshots exist; docs/reference/data-directory.md describes a directory.
// Start at [Files].
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

	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/host/sparse"
	"github.com/hatchvm/hatch/internal/snapshot"
)

var _ snapshot.Files = (*Files)(nil)

// Names of the files in a snapshot's directory, beside those of vmm.Saved.
const (
	memoryName  = "memory"
	memoryIndex = "memory.json"
	diskName    = "disk.img"
	diskIndex   = "disk.json"
)

// part is one of the two large files, with its checksums.
type part struct {
	sparse.Part
	name, index string
}

var (
	memory = part{"memory", memoryName, memoryIndex}
	disk   = part{"disk", diskName, diskIndex}
)

// gone precedes a number in the name of a directory that is being removed.
const gone = ".gone."

// ReserveBytes is the space that a snapshot leaves free on the host's disk.
const ReserveBytes = 512 << 20

// Files are the directories of snapshots below one root.
type Files struct {
	root     string
	reserve  int64              // bytes
	removing sync.WaitGroup     // of removed directories
	clearing chan struct{}      // capacity 1; full while a goroutine deletes removed directories
	reading  singleflight.Group // of pinned memory, by snapshot id

	mu     sync.Mutex         // guards loaded and its values
	loaded map[string]*loaded // by snapshot id
}

// Open returns the files below root, which it makes, and deletes directories that
// an earlier daemon was removing. Snapshots leave reserve bytes of the disk free.
func Open(root string, reserve int64) (*Files, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for snapshots: %w", err)
	}
	f := &Files{root: root, reserve: reserve, clearing: make(chan struct{}, 1), loaded: map[string]*loaded{}}
	f.removing.Go(f.Flush)
	return f, nil
}

// Close waits until removed directories are deleted, and frees the RAM of loaded
// memory.
func (f *Files) Close() error {
	f.removing.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.loaded {
		f.unload(id)
	}
	return nil
}

// Dir implements snapshot.Files.
func (f *Files) Dir(id string) string { return filepath.Join(f.root, id) }

// Prepare implements snapshot.Files.
func (f *Files) Prepare(id string, bytes int64) error {
	if !isID(id) {
		return fmt.Errorf("cannot make the directory of a snapshot: %q is not a snapshot id", id)
	}
	if err := space.Require(f.root, "a snapshot", bytes, f.reserve); err != nil {
		return err
	}
	if err := os.Mkdir(f.Dir(id), 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of a snapshot: %w", space.Full(err))
	}
	return nil
}

// Remove implements snapshot.Files. It deletes large files, which takes long, in
// the background.
func (f *Files) Remove(id string) error {
	if !isID(id) {
		return fmt.Errorf("cannot remove a snapshot: %q is not a snapshot id", id)
	}
	f.mu.Lock()
	f.unload(id)
	f.mu.Unlock()
	err := os.Rename(f.Dir(id), fmt.Sprintf("%s%s%d", f.Dir(id), gone, time.Now().UnixNano()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove a snapshot: %w", err)
	}
	f.removing.Go(f.Flush)
	return nil
}

// Disown implements snapshot.Files: files without the manifest are not sealed.
func (f *Files) Disown(id string) error {
	if !isID(id) {
		return fmt.Errorf("cannot remove a snapshot: %q is not a snapshot id", id)
	}
	err := os.Remove(f.path(id, manifestName))
	if err == nil {
		err = sparse.Sync(f.Dir(id))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the manifest of a snapshot: %w", err)
	}
	return nil
}

// SetAside implements snapshot.Files. It moves the directory to lost/ beside the root,
// under a name with the time.
func (f *Files) SetAside(id string) (kept bool, err error) {
	if !isID(id) {
		return false, fmt.Errorf("cannot set a snapshot aside: %q is not a snapshot id", id)
	}
	if _, err := os.Stat(f.path(id, manifestName)); errors.Is(err, fs.ErrNotExist) {
		return false, f.Remove(id)
	} else if err != nil {
		return false, fmt.Errorf("cannot read a snapshot: %w", err)
	}
	lost := filepath.Join(filepath.Dir(f.root), "lost")
	if err := os.MkdirAll(lost, 0o700); err != nil {
		return false, fmt.Errorf("cannot make the directory for lost files: %w", err)
	}
	return true, os.Rename(f.Dir(id), filepath.Join(lost, id+"-"+time.Now().UTC().Format("20060102T150405.000")))
}

// Flush implements snapshot.Files: it deletes removed directories. What cannot be
// deleted is tried again by the next call.
func (f *Files) Flush() {
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

// isID reports whether a name has the form of a snapshot id. Other directories are
// never a snapshot's.
func isID(name string) bool {
	rest, ok := strings.CutPrefix(name, snapshot.IDPrefix)
	return ok && rest != "" && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// discard removes incomplete files of a directory.
func discard(dir string, names ...string) error {
	var failed []error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
