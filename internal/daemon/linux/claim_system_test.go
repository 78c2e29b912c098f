//go:build system

package linux

import (
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/link"
	"github.com/hatchvm/hatch/internal/host/nettest"
	"github.com/hatchvm/hatch/internal/network"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// A second hatchd, with another data directory, changes nothing of the first one's
// network before it fails, and neither does its clean.
func TestASecondHatchdLeavesTheNetworkAlone(t *testing.T) {
	n, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	first, err := link.ClaimHost(link.RunDir, "/var/lib/first")
	if err != nil {
		t.Fatal(err)
	}
	links := link.New(link.Config{Network: n, Log: log})
	if err := links.Setup(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	before := ruleset(t)

	cfg := config.Config{DataDir: t.TempDir(), Network: n, VMM: "qemu"}
	_, err = Open(t.Context(), daemon.HostEnv{
		Config: cfg, Log: log, OnClose: func(close func() error) { t.Cleanup(func() { _ = close() }) },
	})
	if !errs.HasCode(err, "host_in_use") || !strings.Contains(err.Error(), "/var/lib/first") {
		t.Errorf("Open: %v, want host_in_use that names the other's data directory", err)
	}
	cfg.DataDir = filepath.Join(cfg.DataDir, "missing")
	if err := Clean(t.Context(), cfg, false, log); !errs.HasCode(err, "host_in_use") {
		t.Errorf("Clean: %v, want host_in_use", err)
	}
	if after := ruleset(t); after != before {
		t.Errorf("the rules were\n%s\nand are\n%s", before, after)
	}

	if err := links.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Clean(t.Context(), cfg, false, log); err != nil {
		t.Errorf("Clean once the first has ended: %v", err)
	}
	if _, err := net.InterfaceByName(n.Bridge); err == nil {
		t.Error("the bridge is left")
	}
}

func ruleset(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("no rules: %v", err)
	}
	return string(out)
}
