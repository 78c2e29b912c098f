package guest

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// maxCommands is more than an agent runs for the host.
const maxCommands = 1 << 16

// Activity implements [vm.Guest].
func (s *session) Activity(ctx context.Context) (vm.GuestActivity, error) {
	client, _ := s.agent.current()
	if client == nil {
		return vm.GuestActivity{}, noAgent()
	}
	told, err := client.Activity(ctx)
	err = requestError(err, func(answer *wire.RemoteError) error {
		return unavailable("the agent in the guest cannot say whether it is idle").WithCause(answer)
	})
	if errs.HasCode(err, "agent_too_old") {
		return vm.GuestActivity{}, nil // programs in that guest have no way to ask either
	}
	if err != nil {
		return vm.GuestActivity{}, err
	}
	if told.KeepAwakeMillis < 0 || told.KeepAwakeMillis > wire.MaxKeepAwake.Milliseconds() || told.Commands < 0 || told.Commands > maxCommands {
		return vm.GuestActivity{}, unavailable("the agent in the guest sent an invalid activity").WithCause(errors.New("a number is out of range"))
	}
	activity := vm.GuestActivity{Commands: told.Commands}
	if told.KeepAwakeMillis > 0 {
		activity.KeepAwakeUntil = time.Now().Add(time.Duration(told.KeepAwakeMillis) * time.Millisecond)
	}
	return activity, nil
}
