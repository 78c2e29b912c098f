package guest

import (
	"context"
	"net"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Dial implements [vm.Guest].
func (s *session) Dial(ctx context.Context, port int) (net.Conn, error) {
	client, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := client.Dial(ctx, port)
	if err != nil {
		return nil, failure(err, func(answer *wire.RemoteError) error { return refusedDial(port, answer) })
	}
	return conn, nil
}

func refusedDial(port int, answer *wire.RemoteError) error {
	if answer.Code == wire.CodeRefused {
		return errs.New(errs.Unavailable, "port_refused", "nobody listens on port %d in the guest", port).WithCause(answer)
	}
	return errs.New(errs.Unavailable, "port_unreachable", "the agent in the guest cannot connect to port %d", port).WithCause(answer)
}
