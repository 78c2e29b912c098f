package guest

import (
	"context"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

// Trim implements [vm.Guest].
func (s *session) Trim(ctx context.Context) error {
	client, _ := s.agent.current()
	if client == nil {
		return noAgent()
	}
	return requestError(client.Trim(ctx), func(answer *wire.RemoteError) error {
		return unavailable("the agent in the guest could not trim the disk").WithCause(answer)
	})
}
