//go:build linux

package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/owned"
)

// Dirs are the directories that clients may register files from. The zero value has
// none.
//
// A file is opened from the descriptor of its directory, without following a link or
// crossing a mount, and only where no other user can put another file in its place:
// VMs open it again by its path.
type Dirs struct{ all []allowedDir }

type allowedDir struct {
	path string // absolute, clean, without links
	fd   int
}

// OpenDirs opens the directories at these absolute paths. Close them. Errors name a
// path that is missing, is a link or below one, has the data directory in it or is in
// it, or can be changed by another user.
func OpenDirs(paths []string, dataDir string) (*Dirs, error) {
	d := &Dirs{}
	for _, path := range paths {
		opened, err := openDir(filepath.Clean(path), dataDir)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot use %s of HATCH_IMAGE_DIRS: %w", path, err), d.Close())
		}
		d.all = append(d.all, opened)
	}
	return d, nil
}

// Close closes the directories.
func (d *Dirs) Close() error {
	var failures []error
	for _, dir := range d.all {
		failures = append(failures, unix.Close(dir.fd))
	}
	d.all = nil
	return errors.Join(failures...)
}

func openDir(path, dataDir string) (allowedDir, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return allowedDir{}, fmt.Errorf("%w: make it, or remove it from the list", err)
	}
	if real != path {
		return allowedDir{}, fmt.Errorf("a symbolic link leads there: give %s", real)
	}
	if err := checkApart(path, dataDir); err != nil {
		return allowedDir{}, err
	}
	if err := owned.CheckAbove(path); err != nil {
		return allowedDir{}, err
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return allowedDir{}, fmt.Errorf("cannot open it: %w", err)
	}
	if err := checkPrivate(fd); err != nil {
		return allowedDir{}, errors.Join(fmt.Errorf("%w: run chown -R root %s && chmod -R go-w %s", err, path, path), unix.Close(fd))
	}
	return allowedDir{path: path, fd: fd}, nil
}

// checkApart refuses a directory with VMs' disks in it, and one in hatchd's data. It
// compares the directories themselves, too: one may be mounted at two paths.
func checkApart(path, dataDir string) error {
	data, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return err
	}
	if within(data, path) || within(path, data) {
		return fmt.Errorf("it and the data directory %s must not be in each other: VMs' disks are no images", dataDir)
	}
	there, err := os.Stat(path)
	if err != nil {
		return err
	}
	places := []string{data}
	entries, err := os.ReadDir(data)
	if err != nil {
		return err
	}
	for _, e := range entries {
		places = append(places, filepath.Join(data, e.Name()))
	}
	for _, place := range places {
		if st, err := os.Stat(place); err == nil && os.SameFile(st, there) {
			return fmt.Errorf("it is %s, in the data directory: VMs' disks are no images", place)
		}
	}
	return nil
}

// within reports whether path is dir or below it. Both are absolute and clean.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// checkPrivate checks that only root and hatchd's user can change what a descriptor
// leads to.
func checkPrivate(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d", st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("other users can write to it (its mode is %04o)", st.Mode&0o7777)
	}
	return nil
}

var (
	errElsewhere = errors.New("it is in none of the directories of HATCH_IMAGE_DIRS")
	errKind      = errors.New("it is neither a regular file nor a directory")
)

// open opens the file or the directory that an absolute path names, if it is below
// one of the directories. A path outside of all is not looked at.
func (d *Dirs) open(path string) (*os.File, error) {
	path = filepath.Clean(path)
	for _, dir := range d.all {
		if rel, err := filepath.Rel(dir.path, path); err == nil && filepath.IsLocal(rel) {
			return dir.open(rel, path)
		}
	}
	return nil, errElsewhere
}

// open opens the entries on the way one after the other, from the descriptor of the
// one before, and checks each before it reads it.
func (a allowedDir) open(rel, path string) (*os.File, error) {
	at, err := step(a.fd, ".", 0)
	if err != nil {
		return nil, err
	}
	names := strings.Split(rel, "/")
	for i, name := range names {
		directory := uint64(unix.O_DIRECTORY)
		if i == len(names)-1 {
			directory = 0
		}
		next, err := step(at, name, directory)
		_ = unix.Close(at) // of a path only: there is nothing to lose
		if err != nil {
			return nil, err
		}
		at = next
	}
	defer func() { _ = unix.Close(at) }()
	return reopen(at, path)
}

// resolution keeps what is opened below the directory that it starts at, on the same
// mount: one could show the data directory at a second place.
const resolution = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// step returns a descriptor of an entry that is good for its path only.
func step(at int, name string, flags uint64) (int, error) {
	fd, err := unix.Openat2(at, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: resolution})
	if err != nil {
		return -1, err
	}
	if err := checkPrivate(fd); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// reopen opens what a descriptor of a path leads to for reading. Others than files and
// directories are not opened: that could wait at a pipe or wake a device.
func reopen(fd int, path string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil, errKind
	}
	opened, err := unix.Open(descriptor(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(opened), path), nil
}

// descriptor is a path by which an open descriptor can be opened again.
func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
