package main

import (
	"strings"
	"testing"
)

// TestWithoutLibvirt checks that bench says how to install libvirt.
func TestWithoutLibvirt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out strings.Builder
	if err := measureLibvirt(&out, nil); err != nil {
		t.Fatal(err)
	}
	if printed := strings.TrimSpace(out.String()); strings.Contains(printed, "\n") || !strings.Contains(printed, howToLibvirt) {
		t.Errorf("it prints %q", printed)
	}
}
