//go:build linux && amd64

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/mapping"
	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	// startLimit bounds a start whose caller does not.
	startLimit = 30 * time.Second
	// openFiles is QEMU's limit: its disks, sockets and threads need some 40.
	openFiles = 256
)

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	if spec.NIC != nil {
		defer func() { _ = spec.NIC.TAP.Close() }()
	}
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	m, err := d.launch(ctx, spec, boots)
	if err != nil {
		return nil, err
	}
	if err := m.meet(ctx); err != nil {
		return nil, m.discard(err)
	}
	d.notes.Tell(d.log, m.proc.Note())
	if err := m.command(ctx, "cont", nil); err != nil {
		return nil, m.discard(err)
	}
	return m, nil
}

// launch starts the process, with the guest's CPUs still standing.
func (d *Driver) launch(ctx context.Context, spec vmm.Spec, o origin) (*machine, error) {
	var in inventory
	defer in.close()
	fd, err := in.gather(spec)
	if err != nil {
		return nil, errors.Join(err, in.undo())
	}
	said, stderr, err := newWords(spec.Dir)
	if err != nil {
		return nil, errors.Join(err, in.undo())
	}
	proc, err := jail.Start(ctx, jail.Process{
		Path: d.binary, Args: arguments(spec, o, d.accel, d.tscKHz(), fd), UID: spec.UID, GID: spec.GID, Groups: d.accel.groups,
		Files: in.files, Stderr: stderr, OpenFiles: openFiles, Cgroup: limits(spec, d.accel),
	})
	_ = stderr.Close()
	if err != nil {
		said.Close()
		return nil, errors.Join(err, in.undo())
	}
	return d.newMachine(handleOf(spec.ID, spec.Dir, proc.Identity(), ""), proc, said), nil
}

// meet connects to a machine just launched, to its console too, so that
// nothing is lost of what the guest says first.
func (m *machine) meet(ctx context.Context) error {
	console, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.handle.Dir, consoleSocket))
	if err != nil {
		return err
	}
	m.keepConsole(console)
	return m.recognise(ctx)
}

// discard ends a machine whose start failed, and says why it did.
func (m *machine) discard(cause error) error {
	bounded, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if err := m.Kill(bounded); err != nil {
		cause = errors.Join(cause, err)
	}
	if err := m.Close(); err != nil {
		cause = errors.Join(cause, err)
	}
	if last := m.lastWords(); last != "" {
		cause = fmt.Errorf("%w; QEMU said: %s", cause, last)
	}
	return errs.New(errs.Internal, "vmm_start_failed", "QEMU would not start the VM").WithCause(cause)
}

// inventory is what is opened for a process and passed on to it.
type inventory struct {
	files []*os.File
	dir   string // where sockets were made, "" before
}

// gather opens everything that spec names.
func (in *inventory) gather(spec vmm.Spec) (fd descriptors, err error) {
	open := func(name string, f *os.File, openErr error) int {
		if openErr != nil {
			err = errors.Join(err, fmt.Errorf("cannot open %s: %w", name, openErr))
			return -1
		}
		in.files = append(in.files, f)
		return jail.FirstFile + len(in.files) - 1
	}
	socket := func(name string) int {
		f, listenErr := listen(spec.Dir, name)
		if listenErr != nil {
			err = errors.Join(err, listenErr)
			return -1
		}
		return open(name, f, nil)
	}
	fd.qmp = socket(qmpSocket)
	if err != nil {
		return fd, err // another machine may run here: its sockets are not ours to undo
	}
	in.dir = spec.Dir
	fd.console, fd.agent = socket(consoleSocket), socket(agentSocket)
	f, openErr := openForUser(spec.Kernel, spec.UID)
	fd.kernel = open("the kernel", f, openErr)
	f, openErr = openForUser(spec.Initramfs, spec.UID)
	fd.initramfs = open("the initramfs", f, openErr)
	for _, d := range spec.Disks {
		f, openErr := openDisk(d)
		fd.disks = append(fd.disks, open("the disk "+d.Serial, f, openErr))
	}
	if spec.Base != nil {
		f, openErr := openBase(spec)
		fd.memory = open("what the guest's memory begins as", f, openErr)
	} else if spec.Memory != "" {
		f, openErr := openMemory(spec)
		fd.memory = open("the guest's memory", f, openErr)
	}
	if spec.NIC != nil {
		f, openErr := duplicate(spec.NIC.TAP)
		fd.tap = open("the TAP", f, openErr)
	}
	return fd, err
}

// close closes the daemon's copies.
func (in *inventory) close() {
	for _, f := range in.files {
		_ = f.Close()
	}
}

// undo removes what gather made in the run directory.
func (in *inventory) undo() error {
	if in.dir == "" {
		return nil
	}
	return removeSockets(in.dir)
}

func openDisk(d vmm.Disk) (*os.File, error) {
	if d.ReadOnly {
		return os.Open(d.Path)
	}
	return os.OpenFile(d.Path, os.O_RDWR, 0)
}

// openMemory opens the file that is the guest's memory. One of another size
// would be taken for broken memory, or be cut.
func openMemory(spec vmm.Spec) (*os.File, error) {
	f, err := os.OpenFile(spec.Memory, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := checkMemory(f, spec); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func checkMemory(f *os.File, spec vmm.Spec) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != int64(spec.MemMiB)<<20 {
		return fmt.Errorf("it has %d bytes instead of %d MiB", st.Size(), spec.MemMiB)
	}
	return nil
}

// baseSeals keep everybody from changing a file.
const baseSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// openBase opens the file that the guest's memory begins as once more, so that
// the process shares no position in it with us. QEMU insists on opening it for
// writing: that it cannot write is found out before.
func openBase(spec vmm.Spec) (*os.File, error) {
	if err := checkMemory(spec.Base, spec); err != nil {
		return nil, err
	}
	path := fdPath(int(spec.Base.Fd()))
	name, err := os.Readlink(path)
	if err != nil {
		return nil, err
	}
	if name != mapping.Link(vmm.BaseName) {
		return nil, fmt.Errorf("it is %q instead of a memfd named %s", name, vmm.BaseName)
	}
	seals, err := unix.FcntlInt(spec.Base.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil, err
	}
	if seals&baseSeals != baseSeals {
		return nil, fmt.Errorf("it is not sealed against all changes, but %#x", seals)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// duplicate copies the descriptor, since Start closes the TAP by itself.
func duplicate(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, errors.New("there is none")
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// openForUser opens a file that QEMU opens once more through /proc/self/fd:
// no directory's mode matters there, but the file's own does. One that the
// process's user may not read is handed over as a copy in memory.
func openForUser(path string, uid int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	if !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.New("it is not a regular file")
	}
	const otherR = 0o004
	owner := int(st.Sys().(*syscall.Stat_t).Uid)
	if uid == 0 || owner == uid || st.Mode().Perm()&otherR != 0 {
		return f, nil
	}
	defer func() { _ = f.Close() }()
	return copyToMemory(f)
}

func copyToMemory(f *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate(filepath.Base(f.Name()), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot get a file in memory: %w", err)
	}
	c := os.NewFile(uintptr(fd), f.Name())
	if _, err := io.Copy(c, f); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
