//go:build linux

package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is the file system of a process with a root directory of its own: what the
// paths name on the host, read-only and under the same paths, and the process's own
// entries in /proc. Paths that do not exist are left out.
type Root struct {
	Programs []string // directories and files: a program, its libraries and its data
	Devices  []string
}

// programFolders hold the programs of a host and what these load, for any user to
// read: /usr on most systems, with links to it or the old directories at the top, and
// the stores of NixOS and Guix. The two in /etc have the names of libraries only.
var programFolders = []string{"/usr", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/alternatives"}

// Programs returns the paths that a program needs, for [Root]. exe is absolute,
// without symbolic links. A program outside of the folders for programs, such as
// /opt/x/bin/y, may have libraries and data of its own in /opt/x.
func Programs(exe string) []string {
	paths := slices.Clone(programFolders)
	if slices.ContainsFunc(programFolders, func(dir string) bool { return strings.HasPrefix(exe, dir+"/") }) {
		return paths
	}
	paths = append(paths, exe)
	for _, neighbour := range []string{"lib", "lib64", "share"} {
		paths = append(paths, filepath.Join(filepath.Dir(exe), "..", neighbour))
	}
	return paths
}

// stage is where the new root directory is mounted until it is the root. This
// directory exists on every host, and nothing in the host's is shown.
const stage = "/proc"

// procOptions show a process its own directory in /proc and no other, nor what there
// is about the host. The mount has them for itself since Linux 5.8.
const procOptions = "hidepid=4,subset=pid"

// enter gives the calling thread, and what it executes, a mount namespace whose root
// is r. The host has no part in the mounts. The thread must end afterwards.
func (r Root) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	unix.Umask(0o022) // of this thread: a mount namespace has its own
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot detach the mounts from the host's: %w", err)
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,nr_inodes=256,mode=755"); err != nil {
		return fmt.Errorf("cannot mount a root directory: %w", err)
	}
	if err := r.fill(); err != nil {
		return err
	}
	if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot make the root directory read-only: %w", err)
	}
	return pivot()
}

// fill adds what the root directory has.
func (r Root) fill() error {
	for _, path := range r.Programs {
		if err := show(path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
			return fmt.Errorf("cannot show %s: %w", path, err)
		}
	}
	for _, path := range r.Devices {
		if err := show(path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC); err != nil {
			return fmt.Errorf("cannot show %s: %w", path, err)
		}
	}
	proc := filepath.Join(stage, "proc")
	if err := os.Mkdir(proc, 0o555); err != nil {
		return fmt.Errorf("cannot make /proc: %w", err)
	}
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, procOptions); err != nil {
		return fmt.Errorf("cannot mount /proc (%s): %w", procOptions, err)
	}
	return nil
}

// show adds what a path of the host names: a link as it is, a file or a directory as a
// mount with these attributes, with the mounts in it. It adds nothing if there is
// nothing, or if a directory added before has it.
func show(path string, attributes uint64) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	to := filepath.Join(stage, path)
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case st.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o444)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(path, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return restrict(to, attributes)
}

// restrict sets attributes of a mount, and, since Linux 5.12, of the mounts in it.
func restrict(point string, attributes uint64) error {
	err := unix.MountSetattr(unix.AT_FDCWD, point, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attributes})
	if !errors.Is(err, unix.ENOSYS) {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
	for attribute, flag := range map[uint64]uintptr{
		unix.MOUNT_ATTR_RDONLY: unix.MS_RDONLY, unix.MOUNT_ATTR_NOSUID: unix.MS_NOSUID,
		unix.MOUNT_ATTR_NODEV: unix.MS_NODEV, unix.MOUNT_ATTR_NOEXEC: unix.MS_NOEXEC,
	} {
		if attributes&attribute != 0 {
			flags |= flag
		}
	}
	return unix.Mount("", point, "", flags, "")
}

// pivot makes the mount at stage the root of the namespace, and unmounts the old root.
func pivot() error {
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // which puts the old root over the new one
		return fmt.Errorf("cannot change the root directory: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot unmount the host's root directory: %w", err)
	}
	return unix.Chdir("/")
}
