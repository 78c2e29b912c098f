//go:build system

package doctor

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestLocalHost runs as root: all checks pass, and they leave nothing.
func TestLocalHost(t *testing.T) {
	before := interfaces(t)
	sys := Local()
	s := settings()
	s.DataDir, s.HTTPAddr, s.AgentPath = t.TempDir(), "127.0.0.1:0", os.Args[0]
	s.MemoryDir = filepath.Join(s.DataDir, "memory")
	checks := Run(t.Context(), sys, s)
	for _, name := range []string{"privileges", "tun", "bridge", "nftables", "http_port", "guest_memory"} {
		if c := find(t, checks, name); c.Status != Pass {
			t.Errorf("%+v", c)
		}
	}
	if after := interfaces(t); after != before {
		t.Errorf("%d interfaces before, %d after", before, after)
	}
}

func interfaces(t *testing.T) int {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
