//go:build linux

package jail

import (
	"log/slog"
	"sync"
)

// Notes logs which limits processes run without: once, and again when it
// changes. The zero value is ready.
type Notes struct {
	mu   sync.Mutex
	last string
}

// Tell takes the [Proc.Note] of a process just started.
func (n *Notes) Tell(log *slog.Logger, note string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if note != "" && note != n.last {
		log.Warn("machines run without some of their limits", "why", note)
	}
	n.last = note
}
