package main

import (
	"strings"
	"testing"
)

// TestWithoutLibvirt goes on, and says how to have it.
func TestWithoutLibvirt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out strings.Builder
	if err := measureLibvirt(&out, nil); err != nil {
		t.Fatal(err)
	}
	if said := strings.TrimSpace(out.String()); strings.Contains(said, "\n") || !strings.Contains(said, howToLibvirt) {
		t.Errorf("it says %q", said)
	}
}
