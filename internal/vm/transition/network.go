package transition

import (
	"context"

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

func (e *Engine) openForwards(_ context.Context, r *Run) error { return e.Forward(r.VM) }

// Forward listens on the VM's SSH port and its published ports, and on no others for it.
func (e *Engine) Forward(v vm.VM) error { return e.Forwards.Forward(v.ID, v.Forwards()) }

func (e *Engine) closeForwards(_ context.Context, r *Run) {
	if err := e.Forwards.Forward(r.VM.ID, nil); err != nil {
		e.Log.Error("cannot close the ports of a vm", logkey.VM, r.VM.ID, logkey.Error, err)
	}
}

// Teardown closes the VM's ports on the host, detaches its link and drops its memory, so that
// the connections of a sleeping VM end, too.
// What is reserved for the VM stays reserved. Precondition: no machine of it lives.
func (e *Engine) Teardown(ctx context.Context, v vm.VM) {
	e.closeForwards(ctx, &Run{VM: v})
	e.detachLink(ctx, v, false)
	e.DropMemory(v.ID)
}
