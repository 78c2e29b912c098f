package reach

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/live"
)

// Current returns the number of the machine that this hatchd holds of a VM, without a
// look at its row; none while the VM is falling asleep. Each start and wake gives a VM
// another machine. It has no scope, as Hold.
func (r *Reach) Current(id string) (machine uint64, ok bool) {
	if _, falling := r.falling(id); falling != nil {
		return 0, false
	}
	m := r.cfg.Live.Current(id)
	if m == nil {
		return 0, false
	}
	return m.Number, true
}

// Machine is Current for a VM in scope that may not run: it is woken with Wake, if it
// sleeps. Errors: those of Open, but for the guest's.
func (r *Reach) Machine(ctx context.Context, scope access.Scope, id string, cause Cause, mode Mode) (uint64, error) {
	var m *live.Machine
	err := r.steadily(ctx, id, func() (err error) {
		m, err = r.machine(ctx, scope, id, cause, mode)
		return err
	})
	if err != nil {
		return 0, err
	}
	return m.Number, nil
}

// Connect is Dial for connections that are kept while they are idle: such a connection is
// no use of the VM. Its caller holds the VM while it uses one.
func (r *Reach) Connect(ctx context.Context, scope access.Scope, id string, port int, cause Cause) (vm.PortConn, error) {
	conn, err := r.Dial(ctx, scope, id, port, cause)
	if err == nil {
		conn.(*counted).end(false)
	}
	return conn, err
}
