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
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/host/mapping"
	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	// startTimeout bounds a start, if its context does not end before.
	startTimeout = 30 * time.Second
	// openFiles limits QEMU's open files: its disks, sockets and threads need some 40.
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
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	m, err := d.launch(ctx, spec, boot)
	if err != nil {
		return nil, err
	}
	if err := m.attach(ctx); err != nil {
		return nil, m.Discard(err)
	}
	d.notes.Log(d.log, m.Proc.Note())
	if err := m.command(ctx, "cont", nil); err != nil {
		return nil, m.Discard(err)
	}
	return m, nil
}

// launch starts the process with the guest's CPUs paused.
func (d *Driver) launch(ctx context.Context, spec vmm.Spec, mode startMode) (*machine, error) {
	var opened processFiles
	defer opened.close()
	fd, err := opened.openAll(spec)
	if err != nil {
		return nil, errors.Join(err, opened.undo())
	}
	output, stderr, err := newStderr(spec.Dir)
	if err != nil {
		return nil, errors.Join(err, opened.undo())
	}
	p := jailed(d.binary, d.accel)
	p.Args, p.UID, p.GID, p.Groups = arguments(spec, mode, d.accel, d.tscKHz(), fd), spec.UID, spec.GID, d.accel.groups
	p.Files, p.Stderr, p.Cgroup = opened.files, stderr, limits(spec, d.accel, d.cgroups)
	var proc *jail.Proc
	if p.FileSize, err = largestFile(opened.files); err == nil {
		proc, err = jail.Start(ctx, p)
	}
	_ = stderr.Close()
	if err != nil {
		output.Close()
		return nil, errors.Join(err, opened.undo())
	}
	return d.newMachine(handleOf(spec.ID, spec.Dir, proc.Identity(), ""), proc, output), nil
}

// jailed returns a process that runs QEMU in its jail, without arguments. Its root
// directory has no file of a machine: those are passed to it open.
func jailed(binary string, accel acceleration) jail.Process {
	devices := []string{"/dev/null", "/dev/urandom"}
	if accel.name == AccelKVM {
		devices = append(devices, kvm.Device)
	}
	return jail.Process{
		Path: binary, OpenFiles: openFiles, OwnPIDs: true, Filtered: true,
		Root: &jail.Root{Programs: jail.Programs(binary), Devices: devices},
	}
}

// largestFile returns how large a process may make a file, in bytes. QEMU writes disks
// and memory, which keep their sizes, and the devices of a saved machine.
func largestFile(files []*os.File) (int64, error) {
	const devices, step = 64 << 20, 1 << 20 // QEMU completes the last sector of a disk
	largest := int64(devices)
	for _, f := range files {
		st, err := f.Stat()
		if err != nil {
			return 0, err
		}
		mode, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil {
			return 0, err
		}
		if st.Mode().IsRegular() && mode&unix.O_ACCMODE != unix.O_RDONLY {
			largest = max(largest, (st.Size()+step-1)/step*step)
		}
	}
	return largest, nil
}

// attach connects to the console of a machine that was just launched, for the first
// Dial, so that no output of the guest is lost. Then it connects to QMP.
func (m *machine) attach(ctx context.Context) error {
	console, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.Handle().Dir, consoleSocket))
	if err != nil {
		return err
	}
	if err := m.SetConn(vmm.ChannelConsole, console); err != nil {
		return err
	}
	m.mu.Lock()
	m.console = console
	m.mu.Unlock()
	return m.checkVersion(ctx, commandTimeout)
}

// processFiles are the files that launch opens and passes to a process.
type processFiles struct {
	files []*os.File
	dir   string // in which sockets were made; "" before
}

// openAll opens all files that spec names, and makes the sockets.
func (p *processFiles) openAll(spec vmm.Spec) (fd descriptors, err error) {
	open := func(name string, f *os.File, openErr error) int {
		if openErr != nil {
			err = errors.Join(err, fmt.Errorf("cannot open %s: %w", name, openErr))
			return -1
		}
		p.files = append(p.files, f)
		return jail.FirstFile + len(p.files) - 1
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
		return fd, err // another machine may run in this directory: undo must not remove its sockets
	}
	p.dir = spec.Dir
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
		fd.memory = open("the base of the guest's memory", f, openErr)
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
func (p *processFiles) close() {
	for _, f := range p.files {
		_ = f.Close()
	}
}

// undo removes the sockets that openAll made.
func (p *processFiles) undo() error {
	if p.dir == "" {
		return nil
	}
	return removeSockets(p.dir)
}

func openDisk(d vmm.Disk) (*os.File, error) {
	if d.ReadOnly {
		return os.Open(d.Path)
	}
	return os.OpenFile(d.Path, os.O_RDWR, 0)
}

// openMemory opens the file of the guest's memory.
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

// checkMemory returns an error if a file is not as large as the guest's memory.
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

// baseSeals make a memfd immutable.
const baseSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// openBase opens the base again, so that the process does not share our file offset.
// QEMU needs it open for writing, so openBase first checks that the seals forbid
// every change.
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
		return nil, fmt.Errorf("it is not sealed against all changes: its seals are %#x", seals)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// duplicate duplicates the descriptor, since Start closes the TAP itself.
func duplicate(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, errors.New("the spec has none")
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// openForUser opens a file that QEMU, as user uid, opens again through /proc/self/fd:
// the modes of its directories do not matter then, but its own mode does. If the user
// may not read it, openForUser returns a copy in memory.
func openForUser(path string, uid int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("cannot stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = f.Close()
		return nil, errors.New("it is not a regular file")
	}
	if uid == 0 || int(st.Uid) == uid || st.Mode&unix.S_IROTH != 0 {
		return f, nil
	}
	defer func() { _ = f.Close() }()
	return copyToMemory(f)
}

func copyToMemory(f *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate(filepath.Base(f.Name()), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memfd: %w", err)
	}
	c := os.NewFile(uintptr(fd), f.Name())
	if _, err := io.Copy(c, f); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
