package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/test/sandbox"
)

// howToLibvirt is what to do where there is no libvirt.
const howToLibvirt = "apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"

// nobody is the user that libvirt runs as: one without rights keeps all that it
// has in directories of its own.
const nobody = 65534

// libvirt is a libvirt of our own, with a shell of it that is open all the
// time, so that no start of virsh is measured.
type libvirt struct {
	dir    string // all of it, below nobody's home
	daemon *exec.Cmd
	shell  *exec.Cmd
	in     io.WriteCloser
	lines  *bufio.Scanner // of what the shell says, errors included
}

// libvirtDaemon returns libvirt's program for QEMU, or "".
func libvirtDaemon() string {
	if _, err := exec.LookPath("virsh"); err != nil {
		return ""
	}
	for _, name := range []string{"libvirtd", "virtqemud"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// startLibvirt starts the daemon, and returns once it serves.
func startLibvirt(program string) (l *libvirt, err error) {
	l = &libvirt{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot start %s: %w", program, err), l.close())
		}
	}()
	if l.dir, err = os.MkdirTemp("", "hatch-libvirt-"); err != nil {
		return l, err
	}
	settings := l.path("config", "libvirt", "qemu.conf")
	if err := os.MkdirAll(filepath.Dir(settings), 0o700); err != nil {
		return l, err
	}
	if err := os.WriteFile(settings, []byte("stdio_handler = \"file\"\n"), 0o600); err != nil { // no third daemon
		return l, err
	}
	if err := l.own(); err != nil {
		return l, err
	}
	log, err := os.Create(l.log())
	if err != nil {
		return l, err
	}
	defer func() { _ = log.Close() }()
	daemon := l.command(program)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return l, err
	}
	l.daemon = daemon
	if err := sandbox.Poll(patience, func() (bool, error) { return l.command("virsh", "version").Run() == nil, nil }); err != nil {
		return l, fmt.Errorf("%w\n%s", err, sandbox.Tail(l.log(), 20))
	}
	return l, l.openShell()
}

func (l *libvirt) path(below ...string) string {
	return filepath.Join(append([]string{l.dir}, below...)...)
}

func (l *libvirt) log() string { return l.path("libvirt.log") }

// own gives all files to the user that libvirt runs as.
func (l *libvirt) own() error {
	return filepath.WalkDir(l.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobody, nobody)
	})
}

// command is a program that runs as nobody and finds everything in dir.
func (l *libvirt) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C", "HOME=" + l.dir, "LIBVIRT_DEFAULT_URI=qemu:///session",
		"XDG_CONFIG_HOME=" + l.path("config"), "XDG_CACHE_HOME=" + l.path("cache"),
		"XDG_DATA_HOME=" + l.path("data"), "XDG_RUNTIME_DIR=" + l.path("run"),
	}
	cmd.Dir = l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: kvmGroup()}}
	return cmd
}

// kvmGroup is the group that may use KVM, if there is any.
func kvmGroup() []uint32 {
	info, err := os.Stat("/dev/kvm")
	if err != nil {
		return nil
	}
	return []uint32{info.Sys().(*syscall.Stat_t).Gid}
}

func (l *libvirt) openShell() error {
	shell := l.command("stdbuf", "-oL", "virsh") // which would keep its words back
	in, err := shell.StdinPipe()
	if err != nil {
		return err
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		return err
	}
	shell.Stderr = shell.Stdout
	if err := shell.Start(); err != nil {
		return err
	}
	l.shell, l.in, l.lines = shell, in, bufio.NewScanner(out)
	return nil
}

// begin has the shell do something.
func (l *libvirt) begin(line string) error {
	_, err := io.WriteString(l.in, line+"\n")
	return err
}

// await waits until the shell says that it is done, in these words.
func (l *libvirt) await(words string) error {
	for l.lines.Scan() {
		switch line := l.lines.Text(); {
		case strings.Contains(line, "error:"):
			return fmt.Errorf("libvirt refuses: %s", line)
		case strings.Contains(line, words):
			return nil
		}
	}
	return errors.Join(errors.New("virsh has ended"), l.lines.Err())
}

// libvirtEnd is how long libvirt may take to end.
const libvirtEnd = 10 * time.Second

// close ends all that runs, by its process, and removes all that is left.
func (l *libvirt) close() error {
	if l.in != nil {
		_ = l.in.Close() // which ends the shell
		_ = l.shell.Wait()
	}
	if l.daemon != nil {
		_ = l.daemon.Process.Signal(syscall.SIGTERM)
		stuck := time.AfterFunc(libvirtEnd, func() { _ = l.daemon.Process.Kill() })
		_ = l.daemon.Wait() // it was told to end
		stuck.Stop()
	}
	return os.RemoveAll(l.dir)
}
