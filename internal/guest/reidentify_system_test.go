//go:build system

package guest_test

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/vm"
)

// printIdentity prints the names, ids and addresses of a guest.
const printIdentity = `hostname; cat /etc/hostname /etc/hosts /etc/machine-id; cat /sys/class/net/eth0/address
ip -o -4 addr show dev eth0 | while read a b c d e; do echo $d; done; ip route show default; cat /etc/resolv.conf`

// TestCloneIsReidentified reidentifies a guest as a clone of itself, and then as a clone
// of that clone with the same names.
func TestCloneIsReidentified(t *testing.T) {
	oldID := "0123456789abcdef0123456789abcdef"
	o := busyboxGuest(t, nil)
	formatDisk(t, o.base, busyboxTree(t, append(applets, "sbin/init"), map[string]string{
		"etc/inittab": inittab, "etc/init.d/rcS": rcS,
		"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 web-1\n", "etc/machine-id": oldID + "\n",
	}), 16)
	m := startMachine(t, o)
	session := m.connectWhenReady()
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}

	as := vm.Identity{
		InstanceID: "vm_clone", Hostname: "clone-2", MAC: net.HardwareAddr{2, 0xfc, 10, 0, 2, 16},
		Address: netip.MustParsePrefix("10.0.2.16/24"), Gateway: netip.MustParseAddr("10.0.2.2"),
	}
	want := regexp.MustCompile("^clone-2\nclone-2\n127.0.0.1 localhost\n127.0.1.1 clone-2\n([0-9a-f]{32})\n02:fc:0a:00:02:10\n" +
		"10.0.2.16/24\ndefault via 10.0.2.2 dev eth0 ?\n(?:10\\.0\\.2\\.0/24 .*\n)?nameserver 10.0.2.3\n$")
	var ids []string
	for range 2 {
		g := guest.New(slog.New(slog.NewTextHandler(logWriter{t}, nil)), "").Reidentify("vm_test", m.dial, func(*vm.GuestReport) {}, as)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		began := time.Now()
		err := g.Confirmed(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("confirmed after %v", time.Since(began).Round(time.Millisecond))
		c := run1(t, g, process.Spec{Shell: printIdentity})
		got := want.FindStringSubmatch(c.stdout)
		if got == nil || got[1] == oldID {
			t.Fatalf("the guest is %q, %q", c.stdout, c.stderr)
		}
		ids = append(ids, got[1])
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if ids[0] == ids[1] {
		t.Errorf("both clones have the machine id %s", ids[0])
	}
}
