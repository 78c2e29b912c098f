package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/test/sandbox"
)

// The host's size.
const (
	cpus   = "2"
	memory = "6G"

	dataSize = 24 << 30 // sparse
)

// bootTimeout bounds a boot: an emulated one takes about a minute on two idle cores.
const bootTimeout = 6 * time.Minute

// Host is a computer made of an image. Its disks outlive its boots. It is not safe for
// concurrent use, but for [Host.Run] and [Host.Dial].
type Host struct {
	emulator *Emulator
	image    *Image
	dir      string
	cargo    string
	port     int // of its SSH server, on loopback

	qemu   *exec.Cmd
	exited chan struct{} // closed when QEMU has ended
	err    error         // of QEMU; valid once exited is closed

	mu    sync.Mutex
	login *ssh.Client // nil while the host is down
}

// NewHost makes a host in a directory, which must lie beside the image. The files below
// cargo are on a
// disk of their own, which the host mounts at /media/cargo, read-only. One more disk,
// /dev/vdc, is empty.
func NewHost(ctx context.Context, emulator *Emulator, image *Image, dir, cargo string) (*Host, error) {
	h := &Host{emulator: emulator, image: image, dir: dir, cargo: filepath.Join(dir, "cargo.ext4")}
	if err := run(ctx, "cp", "--sparse=always", "--reflink=auto", filepath.Join(image.dir, diskFile), h.rootDisk()); err != nil {
		return nil, err
	}
	if err := makeDisk(ctx, h.cargo, dataSize, "-O", "^has_journal", "-L", "cargo", "-d", cargo); err != nil {
		return nil, err
	}
	data, err := os.Create(h.dataDisk())
	if err != nil {
		return nil, err
	}
	return h, errors.Join(data.Truncate(dataSize), data.Close())
}

func (h *Host) rootDisk() string { return filepath.Join(h.dir, diskFile) }
func (h *Host) dataDisk() string { return filepath.Join(h.dir, "data.raw") }

// Console is the file with what the host has written to its serial port.
func (h *Host) Console() string { return filepath.Join(h.dir, "console.log") }

// Boot starts the host and returns once it lets root log in.
func (h *Host) Boot(ctx context.Context) error {
	if err := h.start(); err != nil {
		return fmt.Errorf("cannot start the host: %w", err)
	}
	err := sandbox.Poll(bootTimeout, func() (bool, error) {
		select {
		case <-h.exited:
			return false, errors.Join(errors.New("QEMU has ended"), h.err)
		case <-ctx.Done():
			return false, ctx.Err()
		default:
			return h.logIn() == nil, nil
		}
	})
	if err != nil {
		return fmt.Errorf("the host does not boot: %w\n%s", err, sandbox.Tail(h.Console(), 30))
	}
	return nil
}

// emulation is the processor of a host without hardware virtualization.
var emulation = []string{"-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,+svm,+npt"}

// start starts QEMU, with KVM if this machine has it.
func (h *Host) start() (err error) {
	if h.port, err = freePort(); err != nil {
		return err
	}
	machine := emulation
	if hasKVM() {
		machine = []string{"-accel", "kvm", "-cpu", "host"}
	}
	args := append(slices.Clone(machine),
		"-machine", "q35", "-smp", cpus, "-m", memory, "-display", "none", "-no-reboot", "-nodefaults",
		"-chardev", "file,id=serial,append=on,path="+h.Console(), "-serial", "chardev:serial",
		"-kernel", filepath.Join(h.image.dir, kernelFile), "-initrd", filepath.Join(h.image.dir, initrdFile),
		"-append", "console=ttyS0 root=/dev/vda rw quiet panic=5 mitigations=off tsc=reliable clocksource=tsc",
		"-netdev", fmt.Sprintf("user,id=uplink,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", h.port),
		"-device", "virtio-net-pci,netdev=uplink", "-device", "virtio-rng-pci",
	)
	for i, disk := range []string{h.rootDisk(), h.cargo, h.dataDisk()} {
		args = append(args, "-drive", fmt.Sprintf("file=%s,if=none,id=disk%d,format=raw,cache=unsafe,discard=unmap", disk, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	log, err := os.OpenFile(filepath.Join(h.dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if h.qemu, err = h.emulator.command(filepath.Dir(h.image.dir), args...); err != nil {
		return err
	}
	h.qemu.Stdout, h.qemu.Stderr = log, log
	if err := h.qemu.Start(); err != nil {
		return err
	}
	h.exited = make(chan struct{})
	go func(exited chan struct{}) {
		h.err = h.qemu.Wait()
		close(exited)
	}(h.exited)
	return nil
}

// hasKVM reports whether this machine has hardware virtualization: a /dev/kvm without
// it only emulates instructions.
func hasKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	text, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && regexp.MustCompile(`(?m)^flags\s*:.*\b(vmx|svm)\b`).Match(text)
}

// freePort returns a port of the sandbox's loopback that is free: no other program
// takes one there.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// CutPower ends the host at once: what its programs have not synced is lost.
func (h *Host) CutPower() error {
	if h.qemu == nil || h.qemu.Process == nil {
		return nil // it was never started
	}
	if err := h.qemu.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-h.exited
	h.logOut()
	return nil
}

// ShutDown shuts the host down as its user would, and returns how long that took.
// It does not start again; [Host.Boot] starts it.
func (h *Host) ShutDown(ctx context.Context, timeout time.Duration) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// The shutdown may end the session before the command has reported its success.
	_, asked := h.Run(ctx, "systemctl --no-block poweroff", nil)
	select {
	case <-h.exited:
		h.logOut()
		return time.Since(began), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the host has not shut down within %s (poweroff: %w)\n%s", timeout, asked, sandbox.Tail(h.Console(), 30))
	}
}

func (h *Host) sshAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(h.port)) }
