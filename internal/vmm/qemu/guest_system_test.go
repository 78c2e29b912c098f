//go:build linux && amd64 && system

package qemu

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// run starts a machine that is killed at the end of the test.
func (l *lab) run(t *testing.T, s vmm.Spec) (vmm.Machine, *vmmtest.Console) {
	t.Helper()
	m, err := newDriver(t).Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Kill(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		<-m.Exited()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, vmmtest.DialConsole(t, m)
}

func TestTheProcessIsUnprivileged(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	m, _ := l.run(t, s)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", s.UID), fmt.Sprintf("Gid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d", s.GID),
		"Groups:\t \n", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		name, _, _ := strings.Cut(want, ":")
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(string(status), want) {
				t.Errorf("%q is missing in:\n%s", want, status)
			}
		})
	}
	for _, name := range socketNames {
		t.Run(name, func(t *testing.T) {
			if st, err := os.Stat(filepath.Join(s.Dir, name)); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", name, st, err)
			}
		})
	}
}

func TestDisksAreWrittenUnlessReadOnly(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	_, c := l.run(t, s)
	c.Expect("guest ready")
	for _, step := range [][2]string{
		{"read base 4", "read: base"},
		{"read own 3", "read: own"},
		{"read seed 4", "read: seed"},
		{"write own changed", "write: ok"},
		{"read own 7", "read: changed"},
		{"write base changed", "write: write /dev/vda: operation not permitted"},
	} {
		c.Say(step[0])
		c.Expect(step[1])
	}
	for i, want := range []string{"base\x00\x00\x00", "changed"} {
		t.Run(s.Disks[i].Serial, func(t *testing.T) {
			content, err := os.ReadFile(s.Disks[i].Path)
			if err != nil || string(content[:7]) != want {
				t.Errorf("the disk file begins with %q, %v; want %q", content[:7], err, want)
			}
		})
	}
	c.Say("disks")
	c.Expect("disks: base own seed")
}

// The TAP is in a network namespace of the test. The VMM is in another one, and has
// the TAP only as an open file.
func TestTheNICSendsFromItsMAC(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	mac := net.HardwareAddr{0x02, 0xfc, 0, 0, 0, 7}
	tap, frames := newTAP(t, "tap0")
	s.NIC = &vmm.NIC{MAC: mac, TAP: tap}
	_, c := l.run(t, s)
	c.Expect("guest ready")
	c.Say("mac")
	c.Expect("mac: " + mac.String())
	c.Say("netup")
	c.Expect("netup: ok")
	awaitFrameFrom(t, frames, mac)
	if err := tap.Close(); err == nil {
		t.Error("the driver left its TAP open")
	}
}

// newTAP makes a TAP in a network namespace of its own, and a socket that receives
// all its frames.
func newTAP(t *testing.T, name string) (tap *os.File, frames int) {
	t.Helper()
	err := inNewNamespace(func() (err error) {
		tap, frames, err = openTAP(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(frames) })
	return tap, frames
}

// inNewNamespace runs f in a new network namespace, on a thread that ends with f. It
// does not use the process's first thread, which never ends and whose namespace
// /proc/net shows.
func inNewNamespace(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: else another goroutine would run on it
		if unix.Gettid() == unix.Getpid() {
			err := inNewNamespace(f) // on another thread, since this one is locked
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func openTAP(name string) (tap *os.File, frames int, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, err
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, -1, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, -1, err
	}
	frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, -1, err
	}
	req.SetUint16(unix.IFF_UP)
	return os.NewFile(uintptr(fd), name), frames, unix.IoctlIfreq(frames, unix.SIOCSIFFLAGS, req)
}

func htons(n uint16) uint16 { return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, n)) }

func awaitFrameFrom(t *testing.T, frames int, mac net.HardwareAddr) {
	t.Helper()
	timeout := unix.NsecToTimeval(int64(time.Minute))
	if err := unix.SetsockoptTimeval(frames, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 2048)
	for range 100 {
		n, _, err := unix.Recvfrom(frames, frame, 0)
		if err != nil {
			t.Fatalf("received no frame from the guest: %v", err)
		}
		if n >= 14 && net.HardwareAddr(frame[6:12]).String() == mac.String() {
			return
		}
	}
	t.Fatal("received a hundred frames, and none from the guest")
}

func TestAFailedStartQuotesQEMUsStderr(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	s.Kernel = s.Initramfs
	_, err := newDriver(t).Start(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "QEMU printed: ") || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("the error is %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(s.Dir, vmm.LogName)); err != nil || len(text) == 0 {
		t.Errorf("the VMM's log: %q, %v", text, err)
	}
}

// The driver passes the frequency of the time stamp counter to the guest, which
// cannot measure it on a busy host.
func TestTheGuestUsesTheTSCUnderTCG(t *testing.T) {
	l := newLab(t)
	d := newDriver(t)
	if d.Info().Accel != AccelTCG {
		return // under KVM the guest has a paravirtual clock
	}
	s := l.spec(t)
	s.Cmdline = "console=ttyS0"
	_, c := l.run(t, s)
	c.Expect("tsc: Detected ")
	c.Expect("Switched to clocksource tsc")
}

// The disk has what the guest wrote before the save, and the woken guest writes to it.
func TestAWokenGuestReadsAndWritesItsDisk(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	m, c := l.run(t, s)
	c.Expect("guest ready")
	c.Say("write own before")
	c.Expect("write: ok")
	dir := filepath.Join(s.Dir, "saved")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(t.Context(), s, dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t)
	woken, err := d.Wake(t.Context(), s, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = woken.Close() }()
	defer func() { _ = woken.Kill(t.Context()) }()
	c = vmmtest.DialConsole(t, woken)
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, step := range [][2]string{{"read own 6", "read: before"}, {"write own later!", "write: ok"}, {"read base 4", "read: base"}} {
		c.Say(step[0])
		c.Expect(step[1])
	}
	content, err := os.ReadFile(s.Disks[1].Path)
	if err != nil || string(content[:6]) != "later!" {
		t.Errorf("the disk file begins with %q, %v", content[:6], err)
	}
	if err := woken.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The guest has written to its disk since, so it cannot be woken from dir again.
	if m, err := d.Wake(t.Context(), s, dir); err == nil || !strings.Contains(err.Error(), "own was changed") {
		if m != nil {
			_ = m.Kill(t.Context())
			_ = m.Close()
		}
		t.Errorf("a second wake: %v", err)
	}
}

// QEMU itself refuses a devices file that matches the manifest but is not its own.
func TestInvalidDevicesAreAnErrorOfQEMU(t *testing.T) {
	l := newLab(t)
	s := l.spec(t)
	dir := filepath.Join(s.Dir, "saved")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, vmm.SavedDevices), []byte("no devices of QEMU"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t)
	saved, err := vmm.NewSaved(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	info := d.Info()
	saved.Driver, saved.Version, saved.Accel, saved.CPU = Name, info.Version, info.Accel, d.(*Driver).cpu
	if err := saved.Write(dir); err != nil {
		t.Fatal(err)
	}
	m, err := d.Wake(t.Context(), s, dir)
	if err == nil {
		_ = m.Kill(t.Context())
		_ = m.Close()
		t.Fatal("it was woken")
	}
	if !strings.Contains(err.Error(), "QEMU printed: ") {
		t.Errorf("the error is %v", err)
	}
	if left := leftovers(s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
