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

// howToLibvirt installs libvirt.
const howToLibvirt = "apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"

// unprivileged is the user that libvirt runs as: without privileges it keeps all its
// files in directories of its own.
const unprivileged = 65534

// libvirt is a private libvirt with a virsh that stays open, so that its start is not
// measured.
type libvirt struct {
	dir    string // for all its files
	daemon *exec.Cmd
	virsh  *exec.Cmd
	in     io.WriteCloser
	lines  *bufio.Scanner // of virsh's output, errors included
}

// libvirtDaemon returns the path of libvirt's daemon for QEMU, or "".
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

// startLibvirt starts the daemon and waits until it serves.
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
	if err := os.WriteFile(settings, []byte("stdio_handler = \"file\"\n"), 0o600); err != nil { // without another daemon for logs
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
	daemon := l.cmd(program)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return l, err
	}
	l.daemon = daemon
	if err := sandbox.Poll(benchLimit, func() (bool, error) { return l.cmd("virsh", "version").Run() == nil, nil }); err != nil {
		return l, fmt.Errorf("%w\n%s", err, sandbox.Tail(l.log(), 20))
	}
	return l, l.openVirsh()
}

func (l *libvirt) path(below ...string) string {
	return filepath.Join(append([]string{l.dir}, below...)...)
}

func (l *libvirt) log() string { return l.path("libvirt.log") }

// own changes the owner of all files to libvirt's user.
func (l *libvirt) own() error {
	return filepath.WalkDir(l.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, unprivileged, unprivileged)
	})
}

// cmd returns a command that runs as libvirt's user and has its files in dir.
func (l *libvirt) cmd(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C", "HOME=" + l.dir, "LIBVIRT_DEFAULT_URI=qemu:///session",
		"XDG_CONFIG_HOME=" + l.path("config"), "XDG_CACHE_HOME=" + l.path("cache"),
		"XDG_DATA_HOME=" + l.path("data"), "XDG_RUNTIME_DIR=" + l.path("run"),
	}
	cmd.Dir = l.dir
	user := &syscall.Credential{Uid: unprivileged, Gid: unprivileged}
	if kvm, err := os.Stat("/dev/kvm"); err == nil {
		user.Groups = []uint32{kvm.Sys().(*syscall.Stat_t).Gid} // may use KVM
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	return cmd
}

func (l *libvirt) openVirsh() error {
	shell := l.cmd("stdbuf", "-oL", "virsh") // without stdbuf it would buffer its output
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
	l.virsh, l.in, l.lines = shell, in, bufio.NewScanner(out)
	return nil
}

// command sends a command to virsh.
func (l *libvirt) command(line string) error {
	_, err := io.WriteString(l.in, line+"\n")
	return err
}

// await reads virsh's output until a line contains done.
func (l *libvirt) await(done string) error {
	for l.lines.Scan() {
		switch line := l.lines.Text(); {
		case strings.Contains(line, "error:"):
			return fmt.Errorf("libvirt has answered: %s", line)
		case strings.Contains(line, done):
			return nil
		}
	}
	return errors.Join(errors.New("virsh has ended"), l.lines.Err())
}

// libvirtEndLimit is how long libvirt may take to end.
const libvirtEndLimit = 10 * time.Second

// close ends virsh and the daemon, and removes their files.
func (l *libvirt) close() error {
	if l.in != nil {
		_ = l.in.Close() // virsh ends then
		_ = l.virsh.Wait()
	}
	if l.daemon != nil {
		_ = l.daemon.Process.Signal(syscall.SIGTERM)
		stuck := time.AfterFunc(libvirtEndLimit, func() { _ = l.daemon.Process.Kill() })
		_ = l.daemon.Wait() // it was terminated
		stuck.Stop()
	}
	return os.RemoveAll(l.dir)
}
