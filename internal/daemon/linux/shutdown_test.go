package linux

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestManagerStops(t *testing.T) {
	for name, c := range map[string]struct {
		script string // of systemctl; "": there is none
		want   bool
		fails  bool
	}{
		"stopping":     {"echo stopping; exit 1", true, false},
		"running":      {"echo running", false, false},
		"degraded":     {"echo degraded; exit 1", false, false},
		"no answer":    {"echo no bus >&2; exit 1", false, true},
		"it hangs":     {"exec sleep 60", false, true},
		"no systemctl": {"", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir+":/usr/bin:/bin")
			program := "hatch-test-systemctl"
			if c.script != "" {
				script := "#!/bin/sh\n[ \"$*\" = is-system-running ] || exit 2\n" + c.script + "\n"
				if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // instead of askTimeout
			defer cancel()
			stops, err := managerStops(ctx, dir, program)
			if stops != c.want || (err != nil) != c.fails {
				t.Errorf("got %v, %v; want %v, an error: %v", stops, err, c.want, c.fails)
			}
			if elsewhere, err := managerStops(t.Context(), filepath.Join(dir, "none"), program); elsewhere || err != nil {
				t.Errorf("without systemd: %v, %v", elsewhere, err)
			}
		})
	}
}
