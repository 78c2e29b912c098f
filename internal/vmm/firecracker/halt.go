//go:build linux && amd64

package firecracker

import (
	"context"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

// A guest cannot power off: Firecracker has no device for that. Linux instead prints
// a message on the console and halts its CPUs forever. The driver then kills the
// process.
//
// Any program in the guest can print that message, so the driver also checks that no
// output follows it, and that the guest's CPUs do not run.
const (
	haltInterval = 500 * time.Millisecond // of silence before the CPU time is measured, and of the measurement
	haltCPU      = 25 * time.Millisecond  // CPU time that a halted guest's process may use in haltInterval
)

// endsWithHalt reports whether a console's output ends with the message of a guest
// that has halted.
func endsWithHalt(text string) bool {
	text = strings.TrimRight(text, "\r\n")
	last := text[strings.LastIndexByte(text, '\n')+1:]
	return strings.HasSuffix(last, "reboot: Power down") || strings.HasSuffix(last, "reboot: System halted")
}

// watchHalt kills the process of a guest that has halted.
func (m *machine) watchHalt() {
	for {
		more := m.tail.next()
		if endsWithHalt(m.tail.String()) && m.isHalted() {
			m.mu.Lock()
			m.halted = true
			m.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
			if err := m.Proc.Kill(ctx); err != nil {
				m.Log.Warn("cannot end a machine whose guest has halted", logkey.VM, m.Handle().ID, logkey.Error, err)
			}
			cancel()
		}
		select {
		case <-more:
		case <-m.Exited():
			return
		case <-m.Closed():
			return
		}
	}
}

// isHalted reports whether, for twice haltInterval, the guest prints nothing, and
// uses no CPU time in the second half.
func (m *machine) isHalted() bool {
	if !m.staysSilent() {
		return false
	}
	before, err := m.Proc.Usage()
	if err != nil || !m.staysSilent() {
		return false
	}
	after, err := m.Proc.Usage()
	return err == nil && after.CPU-before.CPU < haltCPU
}

// staysSilent waits for haltInterval, and reports whether the halt message is still
// the last output then.
func (m *machine) staysSilent() bool {
	select {
	case <-time.After(haltInterval):
		return endsWithHalt(m.tail.String())
	case <-m.Exited():
	case <-m.Closed():
	}
	return false
}
