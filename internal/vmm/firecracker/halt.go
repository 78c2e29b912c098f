//go:build linux && amd64

package firecracker

import (
	"context"
	"strings"
	"time"
)

// A guest cannot switch its machine off: Firecracker has no device for that.
// Linux that is told to, says so on the console and stands still for ever. Then
// the process is ended for it.
//
// What counts is that these are the last words, that nothing follows, and that
// the guest does nothing any more: words alone are easily printed.
const (
	haltPause = 500 * time.Millisecond // between the words and the measuring, and for that
	haltCPU   = 25 * time.Millisecond  // of the processor, in the same time
)

// saysHalt reports whether a console ends with the words of a guest that has
// halted.
func saysHalt(text string) bool {
	text = strings.TrimRight(text, "\r\n")
	last := text[strings.LastIndexByte(text, '\n')+1:]
	return strings.HasSuffix(last, "reboot: Power down") || strings.HasSuffix(last, "reboot: System halted")
}

// watchHalt ends the process of a guest that has halted.
func (m *machine) watchHalt() {
	for {
		more := m.heard.next()
		if saysHalt(m.heard.String()) && m.standsStill() {
			m.mu.Lock()
			m.halted = true
			m.mu.Unlock()
			m.endHalted()
		}
		select {
		case <-more:
		case <-m.exited:
			return
		case <-m.closed:
			return
		}
	}
}

func (m *machine) endHalted() {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	if err := m.proc.Kill(ctx); err != nil {
		m.log.Warn("cannot end a machine whose guest has halted", "vm", m.handle.ID, "err", err)
	}
}

// standsStill reports whether the guest says and does nothing for a while.
func (m *machine) standsStill() bool {
	if !m.pauseQuietly() {
		return false
	}
	before, err := m.proc.Usage()
	if err != nil || !m.pauseQuietly() {
		return false
	}
	after, err := m.proc.Usage()
	return err == nil && after.CPU-before.CPU < haltCPU
}

// pauseQuietly waits, and reports whether nothing happened meanwhile.
func (m *machine) pauseQuietly() bool {
	select {
	case <-time.After(haltPause):
		return saysHalt(m.heard.String())
	case <-m.exited:
	case <-m.closed:
	}
	return false
}
