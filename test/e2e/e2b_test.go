//go:build system

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// e2bUser makes the user that programs of E2B's clients run as, in an image without it.
const e2bUser = "useradd --create-home --shell /bin/bash user"

// e2bLimit bounds one program of the library, once the guest is there.
const e2bLimit = 5 * time.Minute

// testE2B uses a sandbox by the newest Python library of E2B, as it is: see
// testdata/sandbox.py. The template is a clone of a warm guest, so that it takes little.
func testE2B(t *testing.T, w *world) {
	python := filepath.Join(repository(), ".cache", "e2b-sdk", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Fatalf("E2B's library is not installed: run scripts/e2b-sdk: %v", err)
	}
	if err := w.warmDebian(); err != nil {
		t.Fatal(err)
	}
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, "HATCH_E2B_ADDR=127.0.0.1:3000")
	t.Cleanup(func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	})
	template, err := w.client.CreateTemplate(t.Context(), api.CreateTemplate{
		Name: "base", MachineSpec: api.MachineSpec{ImageID: warmImage, MemMiB: new(debianMem)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.client.DeleteTemplate(context.Background(), template.ID); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), e2bLimit)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "bash", "-c", `eval "$("$1" e2b env --new-key sdk)" && exec "$2" "$3" base "$4"`, "-",
		filepath.Join(repository(), "bin", "hatch"), python, filepath.Join("testdata", "sandbox.py"), e2bUser)
	cmd.Env = append(w.daemon.Environ(), "PYTHONDONTWRITEBYTECODE=1", "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the library fails: %v", err)
	}
	took(t, "a program of E2B's library", began)
	for left, err := range w.client.ListVMs(t.Context(), client.ListOptions{Label: []string{"e2b"}}) {
		t.Errorf("a sandbox is left: %s, %v", left.ID, err)
	}
}
