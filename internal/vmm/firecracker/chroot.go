//go:build linux && amd64

package firecracker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Names in a machine's own root directory, which lies at
// jail/firecracker/ID/root in its run directory, as the jailer wants it.
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

// Names in the run directory, where the process cannot reach.
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

// exeOf returns what /proc/PID/exe shows of a process with this root directory: the
// jailer's copy of Firecracker, as seen in there. An earlier daemon's may have
// another name than ours.
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

// entriesOf returns the paths of what is in a folder; nothing where there is none.
func entriesOf(folder string) (paths []string) {
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		paths = append(paths, filepath.Join(folder, e.Name()))
	}
	return paths
}

// idOfRoot and dirOfRoot take a root directory's path apart.
func idOfRoot(path string) string { return idOfJail(filepath.Base(filepath.Dir(path))) }

func dirOfRoot(path string) string {
	return filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(path))))
}

// chroot is a machine's own root directory while it is furnished.
type chroot struct {
	path     string
	uid, gid int
}

// furnish makes the directory and puts the machine's files and pipes into it.
// state is the file that a machine is woken from, "" to boot.
func (c chroot) furnish(s vmm.Spec, state string) error {
	if err := os.MkdirAll(c.path, 0o700); err != nil {
		return err
	}
	for _, name := range []string{logPipe, metricsPipe} {
		if err := c.pipe(filepath.Join(s.Dir, name+".pipe"), name); err != nil {
			return err
		}
	}
	if state == "" {
		if err := c.bringKernel(s); err != nil {
			return err
		}
	}
	if s.Memory != "" {
		if err := c.bringMemory(s, state); err != nil {
			return err
		}
	}
	for i, d := range s.Disks {
		if err := c.bringDisk(diskFile(i), d); err != nil {
			return fmt.Errorf("cannot bring in the disk %s: %w", d.Serial, err)
		}
	}
	return nil
}

func (c chroot) bringKernel(s vmm.Spec) error {
	if err := c.bring(kernelFile, s.Kernel); err != nil {
		return fmt.Errorf("cannot bring in the kernel: %w", err)
	}
	if s.Initramfs == "" {
		return nil
	}
	if err := c.bring(initramfsFile, s.Initramfs); err != nil {
		return fmt.Errorf("cannot bring in the initramfs: %w", err)
	}
	return nil
}

// bringMemory gives the process the files that it saves to and wakes from.
func (c chroot) bringMemory(s vmm.Spec, state string) error {
	if err := checkMemory(s); err != nil {
		return fmt.Errorf("cannot use the file for the guest's memory: %w", err)
	}
	if err := c.link(memoryFile, s.Memory); err != nil {
		return fmt.Errorf("cannot bring in the guest's memory: %w", err)
	}
	if state == "" {
		state = os.DevNull
	}
	if err := c.copy(stateFile, state, 0o600); err != nil {
		return fmt.Errorf("cannot bring in the machine's devices: %w", err)
	}
	return nil
}

// pipe makes a named pipe outside, and gives the process another name for it.
func (c chroot) pipe(outside, name string) error {
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

// maxCopy is the largest file, in bytes, that is copied because the process may
// not read it: a seed, or a kernel. A disk image is never copied.
const maxCopy = 64 << 20

// bringDisk makes a disk accessible: one that may be written becomes the
// process's own, and one that may not stays as it is.
func (c chroot) bringDisk(name string, d vmm.Disk) error {
	if d.ReadOnly {
		return c.bring(name, d.Path)
	}
	if err := os.Chown(d.Path, c.uid, c.gid); err != nil {
		return err
	}
	return c.link(name, d.Path)
}

// bring makes a file readable that the process must not write to.
func (c chroot) bring(name, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	const otherR, anyW = 0o004, 0o222
	owner := int(st.Sys().(*syscall.Stat_t).Uid)
	switch {
	case !st.Mode().IsRegular():
		return errors.New("it is not a regular file")
	case owner != c.uid && st.Mode().Perm()&otherR != 0, c.uid == 0, owner == c.uid && st.Mode().Perm()&anyW == 0:
		return c.link(name, path)
	case st.Size() > maxCopy:
		return errs.New(errs.Unsupported, "file_unreadable", "the file may be read by its owner only, and is too large to be copied").
			WithHint("make it readable for all: its folder still keeps others out").WithCause(fmt.Errorf("%s has mode %v", path, st.Mode()))
	}
	return c.copy(name, path, 0o400)
}

// link gives a file a name in the directory: a hard link, or where it lies on
// another file system, a mount. The jailer takes mounts along into a mount
// namespace of the process's own.
func (c chroot) link(name, path string) error {
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
	if err := unix.Mount(target, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", to, "", unix.MS_PRIVATE, "") // so that it can be taken away here and stay there
}

func (c chroot) copy(name, path string, mode os.FileMode) error {
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

// seal takes the directories from the process: from here on it can neither make
// nor remove a file. No instruction of the guest has been run before.
func (c chroot) seal() error {
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

// clearOut removes everything that a start makes in a run directory. It is no
// error when there is nothing.
func clearOut(dir string) error {
	var faults []error
	jails := filepath.Join(dir, jailFolder)
	if err := unmountBelow(jails); err != nil {
		return err // else what is mounted there would be removed
	}
	faults = append(faults, os.RemoveAll(jails))
	for _, name := range []string{stdinPipe, stdoutPipe, logPipe + ".pipe", metricsPipe + ".pipe", tapFile, countersFile} {
		faults = append(faults, ignoreMissing(os.Remove(filepath.Join(dir, name))))
	}
	return errors.Join(faults...)
}

// unmountBelow unmounts all that is mounted below dir.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("cannot list mounts: %w", err)
	}
	for _, point := range mountsBelow(string(table), dir) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("cannot unmount what was brought into a jail: %w", err)
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
