//go:build linux && amd64 && system

package firecracker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// A guest of more than 3 GiB has memory on both sides of the gap for devices, for which
// releases before 1.15 need full snapshots. The woken guest still has its data.
func TestALargeGuestIsSavedAndWoken(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	s.MemMiB = 3200
	if err := os.Truncate(s.Memory, int64(s.MemMiB)<<20); err != nil {
		t.Fatal(err)
	}
	m, c := l.run(t, s)
	c.Say("keep large 4")
	c.Expect("keep: ok")
	c.Say("tick")
	c.Expect("tick ")
	dir := filepath.Join(s.Dir, "saved")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := m.Save(t.Context(), s, dir); err != nil {
		t.Fatal(err)
	}
	v := *m.(*machine).version.Load()
	t.Logf("Firecracker %s wrote the snapshot (%s) in %v", v, snapshotType(v, s.MemMiB), time.Since(began).Round(time.Millisecond))
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	woken, err := l.driver(t).Wake(t.Context(), s, dir)
	if err != nil {
		t.Fatalf("cannot wake: %v (%v)", err, errors.Unwrap(err))
	}
	t.Cleanup(func() {
		if err := errors.Join(woken.Kill(t.Context()), woken.Close()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	t.Logf("woken after %v", time.Since(began).Round(time.Millisecond))
	again := vmmtest.DialConsole(t, woken)
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.Expect("tick ")
	again.Say("kept")
	again.Expect("kept: large")
}
