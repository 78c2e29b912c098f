//go:build linux && amd64

package firecracker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Names in the process's root directory, which is jail/firecracker/ID/root in the run
// directory: the jailer fixes that path.
const (
	jailFolder    = "jail"
	apiSocket     = "api.sock"
	vsockSocket   = "vsock.sock"
	logPipe       = "log"
	metricsPipe   = "metrics"
	kernelFile    = "kernel"
	initramfsFile = "initramfs"
	memoryFile    = "memory"
	stateFile     = "state" // of the devices, when the machine is saved
)

func diskFile(i int) string { return "disk" + strconv.Itoa(i) }

// Names in the run directory, outside the process's root directory.
const (
	stdinPipe    = "console.in"
	stdoutPipe   = "console.out"
	countersFile = "counters.json"
	tapFile      = "tap"
)

func rootOf(dir, exe, id string) string {
	return filepath.Join(dir, jailFolder, filepath.Base(exe), jailID(id), "root")
}

func (d *Driver) root(dir, id string) string { return rootOf(dir, d.binary, id) }

// exeOf returns the target of /proc/PID/exe for a process with this root directory:
// the path of the jailer's copy of Firecracker inside it. A process that an earlier
// daemon started may have a copy with another name than ours.
func (d *Driver) exeOf(root string) string {
	if d.unjailed {
		return d.binary
	}
	return "/" + filepath.Base(filepath.Dir(filepath.Dir(root)))
}

// rootsIn returns the root directories that may be in a run directory, and
// rootsBelow those in all run directories directly below a folder.
func rootsIn(dir string) (roots []string) {
	for _, exe := range entriesOf(filepath.Join(dir, jailFolder)) {
		for _, id := range entriesOf(exe) {
			roots = append(roots, filepath.Join(id, "root"))
		}
	}
	return roots
}

func rootsBelow(folder string) (roots []string) {
	for _, dir := range entriesOf(folder) {
		roots = append(roots, rootsIn(dir)...)
	}
	return roots
}

// entriesOf returns the paths of the entries of a folder; none if it does not exist.
func entriesOf(folder string) (paths []string) {
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		paths = append(paths, filepath.Join(folder, e.Name()))
	}
	return paths
}

// idOfRoot and dirOfRoot return the VM's id and run directory of a root directory.
func idOfRoot(path string) string { return idOfJail(filepath.Base(filepath.Dir(path))) }

func dirOfRoot(path string) string {
	return filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(path))))
}

// chroot is the root directory of a process that is being started.
type chroot struct {
	path     string
	uid, gid int
	mounts   []bindMount // of files that a hard link cannot add
}

// bindMount shows the file at the path from at the path to.
type bindMount struct{ from, to string }

// populate makes the directory and adds the machine's files and pipes. state is the
// file with the devices of the machine that is woken; "" to boot.
func (c *chroot) populate(s vmm.Spec, state string) error {
	if err := os.MkdirAll(c.path, 0o700); err != nil {
		return err
	}
	for _, name := range []string{logPipe, metricsPipe} {
		if err := c.pipe(filepath.Join(s.Dir, name+".pipe"), name); err != nil {
			return err
		}
	}
	if state == "" {
		if err := c.addKernel(s); err != nil {
			return err
		}
	}
	if s.Memory != "" {
		if err := c.addMemory(s, state); err != nil {
			return err
		}
	}
	for i, d := range s.Disks {
		if err := c.addDisk(diskFile(i), d); err != nil {
			return fmt.Errorf("cannot add the disk %s to the jail: %w", d.Serial, err)
		}
	}
	if err := c.mount(); err != nil {
		return fmt.Errorf("cannot mount files in the jail: %w", err)
	}
	return nil
}

// mount makes the bind mounts. The directory becomes a private mount first: where
// the mount it lies in is shared, as systemd's are, a later unmount here would
// otherwise reach the process's mount namespace. Hard links come before, since none
// can be made from one mount to another.
func (c *chroot) mount() error {
	if len(c.mounts) == 0 {
		return nil
	}
	if err := unix.Mount(c.path, c.path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", c.path, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, m := range c.mounts {
		if err := unix.Mount(m.from, m.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(m.to), err)
		}
	}
	return nil
}

func (c *chroot) addKernel(s vmm.Spec) error {
	if err := c.addFile(kernelFile, s.Kernel); err != nil {
		return fmt.Errorf("cannot add the kernel to the jail: %w", err)
	}
	if s.Initramfs == "" {
		return nil
	}
	if err := c.addFile(initramfsFile, s.Initramfs); err != nil {
		return fmt.Errorf("cannot add the initramfs to the jail: %w", err)
	}
	return nil
}

// addMemory adds the files for memory and devices, which the process writes when it is
// saved and reads when it is woken.
func (c *chroot) addMemory(s vmm.Spec, state string) error {
	if err := checkMemory(s); err != nil {
		return fmt.Errorf("cannot use the file for the guest's memory: %w", err)
	}
	if err := c.link(memoryFile, s.Memory); err != nil {
		return fmt.Errorf("cannot add the guest's memory to the jail: %w", err)
	}
	if state == "" {
		state = os.DevNull
	}
	if err := c.copy(stateFile, state, 0o600); err != nil {
		return fmt.Errorf("cannot add the machine's devices to the jail: %w", err)
	}
	return nil
}

// pipe makes a named pipe at the path outside, and links it into the directory.
func (c *chroot) pipe(outside, name string) error {
	if err := makePipe(outside); err != nil {
		return err
	}
	if err := os.Chown(outside, c.uid, c.gid); err != nil {
		return err
	}
	return os.Link(outside, filepath.Join(c.path, name))
}

func makePipe(path string) error {
	if err := ignoreMissing(os.Remove(path)); err != nil {
		return err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("cannot make the pipe %s: %w", filepath.Base(path), err)
	}
	return nil
}

// maxCopy is the size, in bytes, of the largest file that is copied because the
// process may not read it: a seed, or a kernel. A disk image is never copied.
const maxCopy = 64 << 20

// addDisk adds a disk. It makes the process's user the owner of a writable disk, and
// does not change a read-only one.
func (c *chroot) addDisk(name string, d vmm.Disk) error {
	if d.ReadOnly {
		return c.addFile(name, d.Path)
	}
	if err := os.Chown(d.Path, c.uid, c.gid); err != nil {
		return err
	}
	return c.link(name, d.Path)
}

// addFile adds a file that the process may read and must not write: the file itself
// if its owner and mode ensure that, else a copy.
func (c *chroot) addFile(name, path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	const anyW = unix.S_IWUSR | unix.S_IWGRP | unix.S_IWOTH
	isOwner := int(st.Uid) == c.uid
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("it is not a regular file")
	case !isOwner && st.Mode&unix.S_IROTH != 0, c.uid == 0, isOwner && st.Mode&anyW == 0:
		return c.link(name, path)
	case st.Size > maxCopy:
		return errs.New(errs.Unsupported, "file_unreadable", "the file may be read by its owner only, and is too large to be copied").
			WithHint("make it readable for all users: the mode of its folder still keeps others out").
			WithCause(fmt.Errorf("%s has mode %#o", path, st.Mode))
	}
	return c.copy(name, path, 0o400)
}

// link adds a file as a hard link, or, if it is on another file system, has mount add
// it. The jailer copies the mounts into the process's mount namespace.
func (c *chroot) link(name, path string) error {
	to := filepath.Join(c.path, name)
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	err = os.Link(target, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	if err := os.WriteFile(to, nil, 0o600); err != nil {
		return err
	}
	c.mounts = append(c.mounts, bindMount{target, to})
	return nil
}

func (c *chroot) copy(name, path string, mode os.FileMode) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := os.OpenFile(filepath.Join(c.path, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, io.LimitReader(from, maxCopy))
	return errors.Join(err, to.Chown(c.uid, c.gid), to.Close())
}

// seal makes root the owner of the directories, so that the process can neither make
// nor remove a file. The guest must not have run before.
func (c *chroot) seal() error {
	return filepath.WalkDir(c.path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if err := os.Lchown(path, 0, 0); err != nil {
			return err
		}
		return os.Chmod(path, 0o711)
	})
}

// cleanRunDir removes everything that a start makes in a run directory. It is no error
// if there is nothing to remove.
func cleanRunDir(dir string) error {
	var failures []error
	jails := filepath.Join(dir, jailFolder)
	if err := unmountBelow(jails); err != nil {
		return err // else RemoveAll would remove the mounted files
	}
	failures = append(failures, os.RemoveAll(jails))
	for _, name := range []string{stdinPipe, stdoutPipe, logPipe + ".pipe", metricsPipe + ".pipe", tapFile, countersFile} {
		failures = append(failures, ignoreMissing(os.Remove(filepath.Join(dir, name))))
	}
	return errors.Join(failures...)
}

// unmountBelow unmounts all mounts below dir.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot list mounts: %w", err)
	}
	for _, point := range slices.Backward(mountsBelow(string(table), dir)) { // a mount comes after the one that it is in
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot unmount a file of a jail: %w", err)
		}
	}
	return nil
}

// mountsBelow reads /proc/self/mountinfo, whose fifth field is the mount point,
// with some characters written in octal.
func mountsBelow(table, dir string) (points []string) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	return points
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
