//go:build linux && amd64 && system

package firecracker

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

// The probe uses 64 MiB, the upper half of them for what it keeps.
func TestAGuestsMemoryIsToldAlsoOfOneThatWasWoken(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	m, c := l.run(t, s)
	awaitMemory(t, m, vmm.GuestMemory{Total: 64 << 20, Available: 32 << 20})
	c.Say("keep first 4")
	c.Expect("keep: ok")
	awaitMemory(t, m, vmm.GuestMemory{Total: 64 << 20, Available: 28 << 20})

	saved := filepath.Join(s.Dir, "saved")
	if err := os.Mkdir(saved, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Save(t.Context(), s, saved), m.Kill(t.Context())); err != nil {
		t.Fatal(err)
	}
	woken, err := l.driver(t).Wake(t.Context(), s, saved)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(woken.Kill(t.Context()), woken.Close()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	if err := woken.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	c = vmmtest.DialConsole(t, woken)
	c.Say("keep second 4")
	c.Expect("keep: ok")
	awaitMemory(t, woken, vmm.GuestMemory{Total: 64 << 20, Available: 24 << 20})
}

// Firecracker 1.12 keeps the first figures of a guest that tells one it does not
// know, for ever: they are not passed on.
func TestFiguresThatAreNoLongerTrueAreNotTold(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	s.Cmdline += " probe.kills=0"
	m, _ := l.run(t, s)
	var told balloonStats
	if err := m.(*machine).api.call(t.Context(), http.MethodGet, "/balloon/statistics", nil, &told); err != nil || told.Total != 64<<20 {
		t.Fatalf("Firecracker tells %+v, %v", told, err)
	}
	if st, err := m.Stats(t.Context()); err != nil || st.GuestMemory != (vmm.GuestMemory{}) {
		t.Errorf("it tells %+v, %v", st.GuestMemory, err)
	}
}

// awaitMemory waits until a guest tells these figures, which it does when it is asked.
func awaitMemory(t *testing.T, m vmm.Machine, want vmm.GuestMemory) {
	t.Helper()
	patience := time.After(time.Minute)
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		st, err := m.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.GuestMemory == want {
			return
		}
		select {
		case <-again.C:
		case <-patience:
			t.Fatalf("the guest tells %+v, not %+v", st.GuestMemory, want)
		}
	}
}
