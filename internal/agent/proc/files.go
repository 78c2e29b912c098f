package proc

import (
	"errors"
	"fmt"
	"os"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// files are both ends of a process's standard files.
type files struct {
	ours   started
	theirs []int // descriptors of stdin, stdout, stderr, or of the terminal
}

// open makes the files that a launch needs.
func (l *launch) open() (*files, error) {
	f := &files{}
	var err error
	if l.spec.TTY != nil {
		err = f.openTerminal(*l.spec.TTY, int(l.who.UID), l.spec.Stdin)
	} else {
		err = f.openPipes(l.spec.Stdin)
	}
	if err != nil {
		f.closeChild()
		f.closeOurs()
		return nil, wire.Refuse(wire.CodeFailed, "the guest cannot give a process its files: %v", err)
	}
	return f, nil
}

func (f *files) openPipes(stdin bool) error {
	if stdin {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		f.theirs = append(f.theirs, ends[0])
		f.ours.stdin = pollable(ends[1], "stdin")
	} else {
		null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f.theirs = append(f.theirs, null)
	}
	for _, name := range []string{"stdout", "stderr"} {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		f.ours.outputs = append(f.ours.outputs, pollable(ends[0], name))
		f.theirs = append(f.theirs, ends[1])
	}
	return nil
}

// pollable makes a file that can be waited for, with a deadline and without a
// thread.
func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func (f *files) openTerminal(size wire.Terminal, uid int, stdin bool) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	f.theirs = []int{slave}
	f.ours.terminal, f.ours.outputs = master, []*os.File{master}
	if stdin {
		f.ours.stdin = master
	}
	_ = unix.Fchown(slave, uid, -1) // an agent without rights has given it already
	return resize(master, size)
}

// child returns the descriptors for the process.
func (f *files) child() []uintptr {
	if len(f.theirs) == 1 {
		fd := uintptr(f.theirs[0])
		return []uintptr{fd, fd, fd}
	}
	var fds []uintptr
	for _, fd := range f.theirs {
		fds = append(fds, uintptr(fd))
	}
	return fds
}

func (f *files) closeChild() {
	for _, fd := range f.theirs {
		_ = unix.Close(fd)
	}
	f.theirs = nil
}

func (f *files) closeOurs() {
	for _, file := range append(f.ours.outputs, f.ours.stdin) {
		if file != nil {
			_ = file.Close() // a terminal's twice, which does no harm
		}
	}
}

// openPTY opens a terminal. In an image whose init has not mounted them there
// are none yet.
func openPTY() (master *os.File, slave int, err error) {
	p, t, err := pty.Open()
	if err != nil && !hasTerminals() {
		if err := mountTerminals(); err != nil {
			return nil, 0, err
		}
		p, t, err = pty.Open()
	}
	if err != nil {
		return nil, 0, fmt.Errorf("cannot open a terminal: %w", err)
	}
	defer func() { _, _ = p.Close(), t.Close() }()
	ours, err := unix.FcntlInt(p.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	master = pollable(ours, "terminal")
	if slave, err = unix.FcntlInt(t.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		_ = master.Close()
		return nil, 0, err
	}
	return master, slave, nil
}

func hasTerminals() bool {
	var st unix.Statfs_t
	return unix.Statfs("/dev/pts", &st) == nil && st.Type == unix.DEVPTS_SUPER_MAGIC
}

func mountTerminals() error {
	if err := os.Mkdir("/dev/pts", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"); err != nil {
		return fmt.Errorf("cannot mount /dev/pts: %w", err)
	}
	return nil
}

// resize sets a terminal's size, and keeps its file one with deadlines.
func resize(terminal *os.File, size wire.Terminal) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	return errors.Join(err, failed)
}
