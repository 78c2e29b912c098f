package driver

import (
	"context"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Hang makes the VM's VMM answer nothing, as one that was sent SIGSTOP; it can only be
// killed. Unhang lets it answer again.
func (d *Driver) Hang(vmID string) {
	g := d.host.guest(vmID)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = make(chan struct{})
}

// Unhang ends Hang.
func (d *Driver) Unhang(vmID string) {
	g := d.host.guest(vmID)
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.answers)
}

// Halt makes the VM's guest stand still, for a reason that has not gone when it is
// resumed: it stands still again, until Unhalt.
func (d *Driver) Halt(vmID string, why vmm.Halt) {
	g := d.host.guest(vmID)
	g.setPaused(true)
	g.mu.Lock()
	g.halt, g.full = why, true
	g.mu.Unlock()
	g.report()
}

// Unhalt lets the next resume of a guest after Halt succeed.
func (d *Driver) Unhalt(vmID string) {
	g := d.host.guest(vmID)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full = false
}

// FailDisk tells the VM's guest so many errors of its disks.
func (d *Driver) FailDisk(vmID string, errors uint64) {
	g := d.host.guest(vmID)
	g.mu.Lock()
	g.errors += errors
	g.mu.Unlock()
	g.report()
}

func (g *guest) report() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// awaitVMM returns once the VMM answers or has ended.
func (g *guest) awaitVMM(ctx context.Context) error {
	g.mu.Lock()
	answers := g.answers
	g.mu.Unlock()
	select {
	case <-answers:
		return nil
	case <-g.exited:
		return errNoMachine(g.handle.ID)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *guest) resume() {
	g.mu.Lock()
	stays := g.full
	if !stays {
		g.halt = vmm.NotHalted
	}
	g.mu.Unlock()
	if !stays {
		g.setPaused(false)
	}
	g.report()
}

func (g *guest) health() vmm.Health {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := vmm.Health{Halt: g.halt, DiskErrors: g.errors}
	if h.Halt == vmm.NotHalted && g.pausedLocked() {
		h.Halt = vmm.HaltPaused
	}
	return h
}
