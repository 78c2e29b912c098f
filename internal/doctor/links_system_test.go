//go:build system

package doctor

import (
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilterChains reads rules like firewalld's and ufw's in a network namespace.
func TestFilterChains(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("run the test as root: %v", err)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(`
table inet firewalld {
	chain zone { accept; }
	chain zones { iifname "hatch0" goto zone; }
	chain filter_INPUT { type filter hook input priority 10; policy accept; jump zones; reject with icmpx admin-prohibited; }
}
table inet user {
	set inside { type ifname; elements = { "hatch0" }; }
	chain input { type filter hook input priority 0; policy drop; iifname { "lo", "hatch0" } accept; }
	chain forward { type filter hook forward priority 0; policy drop; iifname @inside accept; }
}
table ip filter {
	chain INPUT { type filter hook input priority 0; policy drop; }
	chain FORWARD { type filter hook forward priority 0; policy accept; counter; }
	chain OUTPUT { type filter hook output priority 0; policy drop; }
}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	chains, err := filterChains()
	if err != nil || len(chains) != 5 {
		t.Fatalf("got %+v, %v", chains, err)
	}
	for _, c := range chains {
		if c.Input != !strings.EqualFold(c.Name, "FORWARD") || c.Drops != (c.Name != "FORWARD") || slices.Contains(c.Admits, "hatch0") != (c.Table != "filter") {
			t.Errorf("got %+v", c)
		}
	}
}
