//go:build linux && amd64

package qemu

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/vmm"
)

const cpuinfo = `processor	: 0
vendor_id	: GenuineIntel
model name	: Some CPU @ 2.40GHz
stepping	: 1
flags		: fpu vme

processor	: 1
model name	: Another CPU
`

func TestGuestsRelyOnFeaturesUnderKVMAndOnTheModelUnderTCG(t *testing.T) {
	read := func(info, accel string) string {
		t.Helper()
		cpu, err := kvm.ParseCPU(strings.NewReader(info))
		if err != nil {
			t.Fatal(err)
		}
		return cpuForGuests(cpu, acceleration{name: accel})
	}
	updated := strings.Replace(cpuinfo, "fpu vme", "fpu vme new", 1)
	if got := read(cpuinfo, AccelTCG); got != "Some CPU @ 2.40GHz" || got != read(updated, AccelTCG) {
		t.Errorf("under TCG it is %q", got)
	}
	if read(cpuinfo, AccelKVM) == read(updated, AccelKVM) {
		t.Error("under KVM the description is the same with a new feature")
	}
	if _, err := kvm.ParseCPU(strings.NewReader("processor: 0\n")); err == nil {
		t.Error("a processor without a model name was parsed")
	}
}

func TestQMPSendsAFileWithItsCommand(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		ends[i] = conn.(*net.UnixConn)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	q := &qmp{conn: ends[0]}
	if err := q.send(qmpCommand{name: "getfd", args: map[string]any{"fdname": "x"}, file: w}, 7); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	line, rights := make([]byte, 256), make([]byte, 64)
	n, m, _, _, err := ends[1].ReadMsgUnix(line, rights)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(line[:n]), `{"arguments":{"fdname":"x"},"execute":"getfd","id":7}`+"\n"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(got) != 1 {
		t.Fatalf("files %v, %v", got, err)
	}
	sent := os.NewFile(uintptr(got[0]), "sent")
	if _, err := fmt.Fprint(sent, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = sent.Close()
	text := make([]byte, 16)
	if n, err := r.Read(text); string(text[:n]) != "hello" {
		t.Errorf("read %q, %v through the sent file", text[:n], err)
	}
}

// A guest's first write to a hole of its base allocates two pages: one of the base,
// and the guest's copy.
func TestLimitsOfAGuestWithABaseCountItsMemoryTwice(t *testing.T) {
	s := vmm.Spec{ID: "vm_1", VCPUs: 1, MemMiB: 512}
	alone := limits(s, acceleration{name: AccelKVM}, "").MemBytes
	s.Base = os.Stdin
	if got, want := limits(s, acceleration{name: AccelKVM}, "").MemBytes, alone+512<<20; got != want {
		t.Errorf("it is limited to %d bytes, want %d", got, want)
	}
}
