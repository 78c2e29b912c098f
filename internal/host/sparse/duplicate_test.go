//go:build linux

package sparse

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestDuplicate(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1700000000, 123456789)
	if err := os.Chtimes(from, then, then); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it exists
		err := disk.Duplicate(t.Context(), from, to)
		if err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		got, err := os.ReadFile(to)
		if err != nil || string(got) != "content" {
			t.Errorf("got %q, %v", got, err)
		}
		if st, err := os.Stat(to); err != nil || !st.ModTime().Equal(then) {
			t.Errorf("it was changed at %v, %v; want %v", st.ModTime(), err, then)
		}
	}
}

func TestADuplicateThatFailsLeavesNothing(t *testing.T) {
	// In RAM no blocks can be shared.
	dir, err := os.MkdirTemp("/dev/shm", "hatch-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	fault := errors.New("injected")
	if err := disk.DuplicateWith(from, to, func(_, _ *os.File, _ int64) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}
