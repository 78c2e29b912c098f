package boot

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/logkey"
)

// inits are the usual paths of an image's init, the most usual first.
var inits = []string{"/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init", "/bin/init"}

// environment returns the environment that an init starts with, as from the kernel.
func environment() []string {
	return []string{"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// startAgent starts this program again, with name as argv[0] and root as its root. It
// finds the program through /proc, because its file is in the initramfs.
func startAgent(name, root string) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		// /dev has been moved into the root already.
		null, err = os.OpenFile(root+os.DevNull, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	agent, err := os.StartProcess("/proc/self/exe", []string{name}, &os.ProcAttr{
		Dir: "/", Env: environment(), Files: []*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true, Chroot: root},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot start the agent: %w", err)
	}
	return agent, nil
}

// attachConsole makes the kernel's console the standard input and output of this
// process, if there is a console.
func attachConsole(log *slog.Logger) {
	console, err := os.OpenFile("/dev/console", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		log.Debug("no console", logkey.Error, err)
		return
	}
	for fd := range 3 {
		_ = unix.Dup3(int(console.Fd()), fd, 0)
	}
	_ = console.Close()
}

// handOver executes the image's init in place of this process. It returns if the
// image has none.
func handOver(log *slog.Logger, wanted string) {
	candidates := inits
	if wanted != "" {
		candidates = append([]string{wanted}, inits...)
	}
	signal.Reset()
	for _, path := range candidates {
		err := unix.Exec(path, append([]string{path}, os.Args[1:]...), environment())
		if !os.IsNotExist(err) || path == wanted {
			log.Error("cannot start an init", "path", path, logkey.Error, err)
		}
	}
	log.Info("the image has no init; the agent stays PID 1")
}
