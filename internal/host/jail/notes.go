//go:build linux

package jail

import (
	"log/slog"
	"sync"

	"github.com/hatchvm/hatch/internal/logkey"
)

// Notes logs how the limits of processes differ from those configured: once, and again
// after a change. The zero value is ready.
type Notes struct {
	mu   sync.Mutex
	last string
}

// Log logs the [Proc.Note] of a started process.
func (n *Notes) Log(log *slog.Logger, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if note != "" && note != n.last {
		log.Warn("machines are not limited as configured", logkey.Reason, note)
	}
	n.last = note
}
