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
	theirs []*os.File // stdin, stdout, stderr, or the terminal
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
	var in *os.File
	var err error
	if stdin {
		in, f.ours.stdin, err = os.Pipe()
	} else {
		in, err = os.Open(os.DevNull)
	}
	if err != nil {
		return err
	}
	f.theirs = append(f.theirs, in)
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		f.ours.outputs = append(f.ours.outputs, r)
		f.theirs = append(f.theirs, w)
	}
	return nil
}

func (f *files) openTerminal(size wire.Terminal, uid int, stdin bool) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	f.theirs = []*os.File{slave}
	f.ours.terminal, f.ours.outputs = master, []*os.File{master}
	if stdin {
		f.ours.stdin = master
	}
	_ = slave.Chown(uid, -1) // an agent without rights has given it already
	return resize(master, size)
}

// child returns the descriptors for the process.
func (f *files) child() []uintptr {
	if len(f.theirs) == 1 {
		fd := f.theirs[0].Fd()
		return []uintptr{fd, fd, fd}
	}
	var fds []uintptr
	for _, file := range f.theirs {
		fds = append(fds, file.Fd()) // makes it one that blocks
	}
	return fds
}

func (f *files) closeChild() {
	for _, file := range f.theirs {
		_ = file.Close()
	}
}

func (f *files) closeOurs() {
	for _, file := range append(f.ours.outputs, f.ours.stdin) {
		if file != nil {
			_ = file.Close() // a terminal's twice, which does no harm
		}
	}
}

// openPTY opens a terminal, whose master can be waited for with a deadline. In
// an image whose init has not mounted them there are no terminals yet.
func openPTY() (master, slave *os.File, err error) {
	opened, slave, err := pty.Open()
	if err != nil && !hasTerminals() {
		if err := mountTerminals(); err != nil {
			return nil, nil, err
		}
		opened, slave, err = pty.Open()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a terminal: %w", err)
	}
	defer func() { _ = opened.Close() }()
	fd, err := unix.FcntlInt(opened.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = slave.Close()
		return nil, nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
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
