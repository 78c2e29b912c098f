package main

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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// firstFile is the first descriptor that a program is handed beside the
// standard ones, by hatchd as by os/exec.
const firstFile = 3

// bare is what a VMM was started with, to be started again by hand: the same
// arguments, kernel, initramfs and disks, without hatchd, jail or limits.
type bare struct {
	program string
	args    []string
	files   []*os.File // from descriptor firstFile on
	agent   net.Listener
	dir     string
}

// copyOf takes what the VMM was started with. emptyDisk is a file like the
// VM's own disk was before it booted.
func copyOf(v vmm, emptyDisk string) (b *bare, err error) {
	dir, err := os.MkdirTemp("", "hatch-bare-")
	if err != nil {
		return nil, err
	}
	program, err := os.Readlink(v.link("exe"))
	b = &bare{program: program, dir: dir, args: slices.DeleteFunc(slices.Clone(v.args[1:]), func(a string) bool { return a == "-S" })}
	if err == nil {
		err = b.takeFiles(v, emptyDisk)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

var (
	fdArgument  = regexp.MustCompile(`(?:[,=]|^)fd=(\d+)`)
	fdPath      = regexp.MustCompile(`^/proc/self/fd/(\d+)$`)
	agentSocket = regexp.MustCompile(`^socket,id=agent,fd=(\d+)`)
)

// takeFiles opens, under the numbers that the arguments name, what the VMM has
// open there. Its sockets and its TAP get stand-ins.
func (b *bare) takeFiles(v vmm, emptyDisk string) error {
	for _, fd := range descriptorsIn(b.args) {
		for len(b.files) <= fd-firstFile {
			b.files = append(b.files, nil)
		}
		f, err := b.take(v, fd, emptyDisk)
		if err != nil {
			return fmt.Errorf("cannot take descriptor %d of the VMM: %w", fd, err)
		}
		b.files[fd-firstFile] = f
	}
	if b.agent == nil {
		return errors.New("the VMM has no channel to the agent")
	}
	return nil
}

func descriptorsIn(args []string) []int {
	var fds []int
	for _, arg := range args {
		for _, form := range []*regexp.Regexp{fdArgument, fdPath} {
			if m := form.FindStringSubmatch(arg); m != nil {
				fd, _ := strconv.Atoi(m[1]) // digits
				fds = append(fds, fd)
			}
		}
	}
	slices.Sort(fds)
	return slices.Compact(fds)
}

func (b *bare) take(v vmm, fd int, emptyDisk string) (*os.File, error) {
	link := v.link("fd", strconv.Itoa(fd))
	target, err := os.Readlink(link)
	switch {
	case err != nil:
		return nil, err
	case strings.HasPrefix(target, "socket:"):
		return b.listen(fd)
	case target == "/dev/net/tun":
		return openTAP()
	case filepath.Base(target) == filepath.Base(b.diskOf(v)):
		return b.copyFile(emptyDisk)
	}
	return os.Open(link)
}

// diskOf returns the path of the one file that the VMM may write: its disk.
func (b *bare) diskOf(v vmm) string {
	for _, fd := range descriptorsIn(b.args) {
		link := v.link("fd", strconv.Itoa(fd))
		info, err := os.Stat(link)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		text, err := os.ReadFile(v.link("fdinfo", strconv.Itoa(fd)))
		if err == nil && writable(string(text)) {
			target, _ := os.Readlink(link)
			return target
		}
	}
	return ""
}

// writable reads the flags of an open file, in octal.
func writable(fdinfo string) bool {
	for line := range strings.Lines(fdinfo) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
		}
	}
	return false
}

func (b *bare) copyFile(path string) (*os.File, error) {
	to := filepath.Join(b.dir, "disk")
	if out, err := exec.Command("cp", "--sparse=always", path, to).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.OpenFile(to, os.O_RDWR, 0)
}

// listen makes a socket in the place of one of the VMM's.
func (b *bare) listen(fd int) (*os.File, error) {
	path := filepath.Join(b.dir, strconv.Itoa(fd))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(b.args, func(a string) bool {
		m := agentSocket.FindStringSubmatch(a)
		return m != nil && m[1] == strconv.Itoa(fd)
	}) {
		b.agent = l // kept for its address only: QEMU accepts
		return f, nil
	}
	return f, l.Close()
}

func openTAP() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq("bare%d")
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// boot starts QEMU and returns how long it took until the agent answered.
func (b *bare) boot(ctx context.Context) (took time.Duration, err error) {
	cmd := exec.CommandContext(ctx, b.program, b.args...)
	cmd.ExtraFiles = b.files
	var said strings.Builder
	cmd.Stderr = &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if err != nil {
			err = fmt.Errorf("%w: %s", err, said.String())
		}
	}()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", b.agent.Addr().String())
	if err != nil {
		return 0, err
	}
	session, err := wire.Connect(ctx, conn)
	if err != nil {
		return 0, err
	}
	if _, err := session.Status(ctx); err != nil {
		return 0, errors.Join(err, session.Close())
	}
	return time.Since(began), session.Close()
}

func (b *bare) close() error {
	var faults []error
	for _, f := range b.files {
		if f != nil {
			faults = append(faults, f.Close())
		}
	}
	if b.agent != nil {
		faults = append(faults, b.agent.Close())
	}
	return errors.Join(append(faults, os.RemoveAll(b.dir))...)
}
