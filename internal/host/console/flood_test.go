package console

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// A guest that writes without end must wait, and so costs hatchd little.
func TestAFloodIsSlowed(t *testing.T) {
	for name, c := range map[string]struct {
		piece, count  int
		atLeast, most time.Duration
	}{
		"in single bytes":  {1, 5000, 20 * time.Second, 30 * time.Second},
		"in large pieces":  {32 << 10, 1024, 25 * time.Second, 40 * time.Second}, // 32 MiB
		"what a boot says": {100, 400, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				consoles, guest := open(t, 1<<20)
				piece := strings.Repeat("x", c.piece)
				began := time.Now()
				for range c.count {
					say(t, guest, piece)
				}
				if took := time.Since(began); took < c.atLeast || took > c.most {
					t.Errorf("%d pieces of %d bytes took %s, want %s to %s", c.count, c.piece, took, c.atLeast, c.most)
				}
				consoles.Close("vm_a")
			})
		})
	}
}

// A slowed console closes at once, and has logged what was read.
func TestASlowedConsoleCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := open(t, 1<<20)
		for range readsBurst + 10 {
			say(t, guest, "x")
		}
		began := time.Now()
		c.Close("vm_a")
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %s", took)
		}
		var log bytes.Buffer
		if err := c.Log(t.Context(), "vm_a", vm.LogQuery{Tail: -1}, &log); err != nil || log.Len() != readsBurst+10 {
			t.Errorf("the log has %d bytes, %v", log.Len(), err)
		}
	})
}
