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
	agent started // has the agent's ends
	child []int   // descriptors of stdin, stdout and stderr, or of the terminal
}

// open opens the files of a launch.
func (l *launch) open() (*files, error) {
	f := &files{}
	var err error
	if l.spec.TTY != nil {
		err = f.openTerminal(*l.spec.TTY, int(l.user.UID), l.spec.Stdin)
	} else {
		err = f.openPipes(l.spec.Stdin)
	}
	if err != nil {
		f.closeChild()
		f.closeAgent()
		return nil, wire.Refuse(wire.CodeFailed, "the guest cannot open the files of a process: %v", err)
	}
	return f, nil
}

func (f *files) openPipes(stdin bool) error {
	if stdin {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		f.child = append(f.child, ends[0])
		f.agent.stdin = pollable(ends[1], "stdin")
	} else {
		null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f.child = append(f.child, null)
	}
	for _, name := range []string{"stdout", "stderr"} {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		f.agent.outputs = append(f.agent.outputs, pollable(ends[0], name))
		f.child = append(f.child, ends[1])
	}
	return nil
}

// pollable returns a file that supports deadlines, and whose waits block no thread.
func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func (f *files) openTerminal(size wire.Terminal, uid int, stdin bool) error {
	master, slave, err := openPTY()
	if err != nil {
		return err
	}
	f.child = []int{slave}
	f.agent.terminal, f.agent.outputs = master, []*os.File{master}
	if stdin {
		f.agent.stdin = master
	}
	_ = unix.Fchown(slave, uid, -1) // best effort: an unprivileged agent owns it already
	return resize(master, size)
}

// childFiles returns the descriptors for the process.
func (f *files) childFiles() []uintptr {
	if len(f.child) == 1 {
		fd := uintptr(f.child[0])
		return []uintptr{fd, fd, fd}
	}
	var fds []uintptr
	for _, fd := range f.child {
		fds = append(fds, uintptr(fd))
	}
	return fds
}

func (f *files) closeChild() {
	for _, fd := range f.child {
		_ = unix.Close(fd)
	}
	f.child = nil
}

func (f *files) closeAgent() {
	for _, file := range append(f.agent.outputs, f.agent.stdin) {
		if file != nil {
			_ = file.Close() // closes a terminal twice, without harm
		}
	}
}

// openPTY opens a terminal. It mounts /dev/pts if the image's init has not.
func openPTY() (master *os.File, slave int, err error) {
	p, t, err := pty.Open()
	var st unix.Statfs_t
	if err != nil && (unix.Statfs("/dev/pts", &st) != nil || st.Type != unix.DEVPTS_SUPER_MAGIC) {
		if err := mountTerminals(); err != nil {
			return nil, 0, err
		}
		p, t, err = pty.Open()
	}
	if err != nil {
		return nil, 0, fmt.Errorf("cannot open a terminal: %w", err)
	}
	defer func() { _, _ = p.Close(), t.Close() }()
	fd, err := unix.FcntlInt(p.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	master = pollable(fd, "terminal")
	if slave, err = unix.FcntlInt(t.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		_ = master.Close()
		return nil, 0, err
	}
	return master, slave, nil
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

// resize sets a terminal's size. The file stays pollable.
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
