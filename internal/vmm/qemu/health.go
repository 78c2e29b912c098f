//go:build linux && amd64

package qemu

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vmm"
)

// handleEvent handles a QMP event. The guest can cause most of them as often as it
// likes: none is kept, and what Health shows is asked for by its caller, at its own
// rate.
func (m *machine) handleEvent(e qmpEvent) {
	m.Log.Debug("qemu event", logkey.VM, m.Handle().ID, "event", e.Name)
	switch e.Name {
	case "SHUTDOWN": // GUEST_PANICKED precedes one with the reason guest-panic
		m.handleShutdown(e.Data)
	case "MIGRATION":
		m.handleMigration(e.Data)
	case "BLOCK_IO_ERROR":
		m.handleDiskError(e.Data)
	case "RESET": // the agent of that boot is gone, and the session would notice only later
		_ = m.CloseConn(vmm.ChannelAgent)
	case "STOP", "RESUME":
		m.ReportHealth()
	}
}

func (m *machine) handleShutdown(data json.RawMessage) {
	var why struct{ Reason string }
	_ = json.Unmarshal(data, &why) // without a reason the cause is unknown
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reason = why.Reason
}

// handleDiskError counts an error that the guest is told. After any other the guest
// stands still, or was not to notice.
func (m *machine) handleDiskError(data json.RawMessage) {
	var what struct{ Action string }
	_ = json.Unmarshal(data, &what)
	if what.Action == "report" {
		m.mu.Lock()
		m.diskErrors++
		m.mu.Unlock()
	}
	m.ReportHealth()
}

// Health implements vmm.Reporter.
func (m *machine) Health(ctx context.Context) (vmm.Health, error) {
	var now struct{ Status string }
	if err := m.ask(ctx, qmpCommand{name: "query-status"}, &now); err != nil {
		return vmm.Health{}, err
	}
	halt := haltOf(now.Status)
	if halt == vmm.HaltIOError {
		var disks []diskStatus
		if err := m.ask(ctx, qmpCommand{name: "query-block"}, &disks); err != nil {
			return vmm.Health{}, err
		}
		if slices.ContainsFunc(disks, diskStatus.lacksSpace) {
			halt = vmm.HaltNoSpace
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return vmm.Health{Halt: halt, DiskErrors: m.diskErrors}, nil
}

// diskStatus is how the last request of a disk ended, as QEMU tells it.
type diskStatus struct {
	IOStatus string `json:"io-status"`
}

func (d diskStatus) lacksSpace() bool { return d.IOStatus == "nospace" }

// haltOf translates QEMU's states. Those of a migration count as paused: a save that
// failed leaves the guest in one, and it can be resumed.
func haltOf(status string) vmm.Halt {
	switch status {
	case "running":
		return vmm.NotHalted
	case "io-error":
		return vmm.HaltIOError
	case "internal-error":
		return vmm.HaltInternal
	default:
		return vmm.HaltPaused
	}
}
