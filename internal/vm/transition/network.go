package transition

import (
	"context"
	"net/netip"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/vm"
)

func (e *Engine) attach(ctx context.Context, r *Run) error {
	if !r.VM.EnableNetwork {
		return nil
	}
	tap, err := e.Network.Attach(ctx, r.VM.Link())
	r.tap, r.linked = tap, err == nil
	return err
}

func (e *Engine) detach(ctx context.Context, r *Run) {
	if !r.linked || r.Stuck {
		return // a failed attach has left nothing
	}
	if r.tap != nil {
		_ = r.tap.Close() // a second close after the driver's is harmless
	}
	e.DetachLink(ctx, r.VM)
}

// DetachLink takes a VM off its network. A VM that is not attached is no error.
func (e *Engine) DetachLink(ctx context.Context, v vm.VM) { e.detachLink(ctx, v, v.Asleep()) }

// detachLink is DetachLink; asleep says that the VM's connections go on later.
func (e *Engine) detachLink(ctx context.Context, v vm.VM, asleep bool) {
	if !v.EnableNetwork || !v.Lease.Address.IsValid() {
		return
	}
	link := v.Link()
	link.Asleep = asleep
	if err := e.Network.Detach(ctx, link); err != nil {
		e.Log.Error("cannot detach a vm from its network", logkey.VM, v.ID, logkey.Error, err)
	}
}

func (e *Engine) openForward(_ context.Context, r *Run) error { return e.Forward(r.VM) }

// Forward listens on the VM's SSH port. hatchd's own VMs get none: VMs of any
// account are cloned from them, so no login may reach them.
func (e *Engine) Forward(v vm.VM) error {
	if !v.EnableNetwork || v.OwnerID == access.SystemID {
		return nil
	}
	return e.Forwards.Open(v.ID, v.Lease.SSHPort, netip.AddrPortFrom(v.Lease.Address, 22))
}

func (e *Engine) closeForward(_ context.Context, r *Run) {
	if r.VM.EnableNetwork && r.VM.Lease.SSHPort != 0 {
		e.Forwards.Close(r.VM.Lease.SSHPort)
	}
}

// Teardown closes the VM's SSH port, detaches its link and drops its memory, so that
// the connections of a sleeping VM end, too.
// What is reserved for the VM stays reserved. Precondition: no machine of it lives.
func (e *Engine) Teardown(ctx context.Context, v vm.VM) {
	e.closeForward(ctx, &Run{VM: v})
	e.detachLink(ctx, v, false)
	e.DropMemory(v.ID)
}
