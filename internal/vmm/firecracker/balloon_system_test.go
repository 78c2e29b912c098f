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

// The probe uses 64 MiB, and the upper half of them for the data of the keep command.
func TestAWokenGuestReportsItsMemoryToo(t *testing.T) {
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

// After a figure that it does not know Firecracker 1.12 returns the guest's first
// figures forever: the driver does not report them.
func TestStaleFiguresOfAGuestsMemoryAreNotReported(t *testing.T) {
	l := newLab(t, false)
	s := l.spec(t)
	s.Cmdline += " probe.kills=0"
	m, _ := l.run(t, s)
	var stats balloonStats
	if err := m.(*machine).api.call(t.Context(), http.MethodGet, "/balloon/statistics", nil, &stats); err != nil || stats.Total != 64<<20 {
		t.Fatalf("Firecracker returns %+v, %v", stats, err)
	}
	if st, err := m.Stats(t.Context()); err != nil || st.GuestMemory != (vmm.GuestMemory{}) {
		t.Errorf("the driver reports %+v, %v", st.GuestMemory, err)
	}
}

// awaitMemory waits until a guest has reported these figures.
func awaitMemory(t *testing.T, m vmm.Machine, want vmm.GuestMemory) {
	t.Helper()
	timeout := time.After(time.Minute)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		st, err := m.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.GuestMemory == want {
			return
		}
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("the guest reports %+v, want %+v", st.GuestMemory, want)
		}
	}
}
