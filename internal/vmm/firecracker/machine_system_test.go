//go:build linux && amd64 && system

package firecracker

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// run starts a machine that is killed at the end of the test, and waits for its
// guest.
func (l *lab) run(t *testing.T, s vmm.Spec) (vmm.Machine, *vmmtest.Console) {
	t.Helper()
	m, err := l.driver(t).Start(t.Context(), s)
	if err != nil {
		t.Fatalf("cannot start: %v (%v)", err, errors.Unwrap(err))
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Kill(t.Context()), m.Close()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	c := vmmtest.DialConsole(t, m)
	c.Expect("guest ready")
	return m, c
}

func TestDisksAreWrittenUnlessReadOnly(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	_, c := l.run(t, s)
	c.Say("disks")
	c.Expect("disks: base own seed")
	c.Say("read base 4")
	c.Expect("read: base")
	c.Say("read seed 4")
	c.Expect("read: seed")
	c.Say("write own FROM-THE-GUEST")
	c.Expect("write: ok")
	c.Say("write base FROM-THE-GUEST")
	c.Expect("write: the device refuses")
	for serial, want := range map[string]string{"own": "FROM-THE-GUEST", "base": "base", "seed": "seed"} {
		t.Run(serial, func(t *testing.T) {
			got, err := os.ReadFile(filepath.Join(s.Dir, serial+".img"))
			if err != nil || !bytes.HasPrefix(got, append([]byte(want), 0)) {
				t.Errorf("the disk %s begins with %q, %v", serial, got[:min(len(got), 16)], err)
			}
		})
	}
}

func TestFramesPassTheTAPBothWays(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	mac := net.HardwareAddr{2, 0, 0, 0xa, 0xb, 0xc}
	tap, wire := newTAP(t, "hatchfc0")
	s.NIC = &vmm.NIC{MAC: mac, TAP: tap}
	m, c := l.run(t, s)
	c.Say("mac")
	c.Expect("mac: " + mac.String())
	c.Say("netup")
	c.Expect("netup: ok")

	host := net.HardwareAddr{2, 0, 0, 1, 1, 1}
	out := frame(host, mac, "a frame of the guest's")
	c.Say("send " + hex.EncodeToString(out))
	c.Expect("send: ok")
	awaitFrame(t, wire, out)

	in := frame(mac, host, "a frame of the host's")
	if err := unix.Send(wire, in, 0); err != nil {
		t.Fatal(err)
	}
	c.Expect("frame " + hex.EncodeToString(in))

	if err := tap.Close(); err == nil {
		t.Error("the driver left its TAP open")
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("hatchfc0"); err == nil {
		t.Error("the TAP still exists")
	}
}

// frame returns an Ethernet frame of 60 bytes, of a type for experiments.
func frame(to, from net.HardwareAddr, text string) []byte {
	return append(append(append(append([]byte{}, to...), from...), 0x88, 0xb5), (text + strings.Repeat(".", 60-14-len(text)))...)
}

// newTAP makes a TAP in this namespace, and a socket that receives all its frames.
func newTAP(t *testing.T, name string) (tap *os.File, frames int) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	const allKinds = 0x0300 // ETH_P_ALL in network byte order
	frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, allKinds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(frames) })
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(frames, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(frames, &unix.SockaddrLinklayer{Protocol: allKinds, Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name), frames
}

func awaitFrame(t *testing.T, frames int, want []byte) {
	t.Helper()
	timeout := unix.NsecToTimeval(int64(time.Minute))
	if err := unix.SetsockoptTimeval(frames, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2048)
	for range 100 {
		n, _, err := unix.Recvfrom(frames, got, 0)
		if err != nil {
			t.Fatalf("received no frame from the guest: %v", err)
		}
		if bytes.Equal(got[:n], want) {
			return
		}
	}
	t.Fatal("received a hundred frames, and not the one of the guest")
}

func TestStatsCountTheGuestsWork(t *testing.T) {
	l := newLab(t, false)
	m, c := l.run(t, l.spec(t))
	stats := func() vmm.Stats {
		t.Helper()
		st, err := m.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	before := stats()
	c.Say("fill own 8")
	c.Expect("fill: ok")
	filled := stats()
	if got := filled.Block.WriteBytes - before.Block.WriteBytes; got != 8<<20 {
		t.Errorf("the guest wrote %d bytes; counted were %d", 8<<20, got)
	}
	if got := filled.Block.WriteOps - before.Block.WriteOps; got != 8<<20/(64<<10) {
		t.Errorf("%d writes are counted", got)
	}
	if filled.Block.ReadBytes != before.Block.ReadBytes {
		t.Errorf("the guest read nothing; counted were %d bytes", filled.Block.ReadBytes-before.Block.ReadBytes)
	}
	c.Say("burn 1000")
	c.Expect("burn: ok")
	if got := stats().CPUTime - filled.CPUTime; got < 50*time.Millisecond {
		t.Errorf("the guest computed for a second; counted was %v", got)
	}
}

// The driver reads the last output of the console after the exit of the process.
func TestTheLastOutputOfTheConsoleIsRead(t *testing.T) {
	l := newLab(t, false)
	m, c := l.run(t, l.spec(t))
	c.Say("panic")
	c.Expect("Kernel panic - not syncing: asked to")
	<-m.Exited()
	if exit := m.Exit(); exit.Cause != vmm.ExitPanic || exit.Detail != "Kernel panic - not syncing: asked to" {
		t.Errorf("the exit is %+v", exit)
	}
}

// Linux that powers off prints a message and halts: Firecracker does not notice.
func TestTheProcessOfAHaltedGuestIsKilled(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, c := l.run(t, s)
	c.Say("echo reboot: Power down") // prints the message only
	c.Expect("echo: reboot: Power down")
	c.Say("echo still here")
	c.Expect("echo: still here")
	c.Say("echo reboot: Power down")
	c.Expect("echo: reboot: Power down")
	select {
	case <-m.Exited():
		t.Fatal("the process was killed for the message, though the guest still ran")
	case <-time.After(3 * haltInterval):
	}
	c.Say("halt")
	select {
	case <-m.Exited():
	case <-time.After(time.Minute):
		t.Fatal("the process is not killed")
	}
	if exit := m.Exit(); exit.Cause != vmm.ExitShutdown {
		t.Errorf("the exit is %+v", exit)
	}
	if left := leftovers(s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestPausedAndResumedAThousandTimes(t *testing.T) {
	l := newLab(t, false)
	m, c := l.run(t, l.spec(t))
	began := time.Now()
	const times = 1000
	for range times {
		if err := errors.Join(m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a pause and a resume took %v", time.Since(began)/times)
	c.Say("echo still here")
	c.Expect("echo: still here")
}
