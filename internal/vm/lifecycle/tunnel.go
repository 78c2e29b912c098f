package lifecycle

import (
	"context"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/vm"
)

// Tunnel connects to a port of a VM in scope, after it was woken if it slept. The VM is in
// use until the connection is closed, also without bytes: a client that forwards a port
// does not know that guests sleep.
// Errors: errs.NotFound; errs.Unavailable with code port_closed or port_refused; those of a wake.
func (s *Service) Tunnel(ctx context.Context, scope access.Scope, id string, port int) (vm.PortConn, error) {
	if _, err := s.Get(ctx, scope, id); err != nil { // what is not in scope is not held
		return nil, err
	}
	release := s.reach.Hold(ctx, id, reach.Tunnel)
	if _, err := s.reach.Awake(ctx, scope, id); err != nil {
		release()
		return nil, err
	}
	conn, err := s.reach.Dial(ctx, scope, id, port, reach.Tunnel)
	if err != nil {
		release()
		return nil, err
	}
	return &tunnel{conn, release}, nil
}

// tunnel is a connection whose end ends a use of its VM.
type tunnel struct {
	vm.PortConn
	release func()
}

// Close closes the connection, and ends the use.
func (t *tunnel) Close() error {
	defer t.release()
	return t.PortConn.Close()
}
