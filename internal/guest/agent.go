package guest

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// patience is how long a request waits for an agent to be there.
const patience = 10 * time.Second

// agent returns the agent that answers. It waits for one, but not for long: a
// guest may boot, or be reset, or have none.
// Errors: errs.Unavailable with code agent_unavailable.
func (s *session) agent(ctx context.Context) (*wire.Client, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		client, changed := s.current()
		if client != nil && !client.IsLost() {
			return client, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, unavailable("no agent answers in the guest")
		case <-s.done:
			return nil, unavailable("the session with the guest's agent is closed")
		case <-ctx.Done():
			return nil, unavailable("no agent answers in the guest").WithCause(ctx.Err())
		}
	}
}

// failure is what a request to the agent ended with, for the one who asked:
// refused translates what the agent itself answered.
func failure(err error, refused func(*wire.RemoteError) error) error {
	var answer *wire.RemoteError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wire.ErrDetached):
		return detached(err)
	case errors.Is(err, wire.ErrBusy), errors.As(err, &answer) && answer.Code == wire.CodeBusy:
		return errs.New(errs.TooMany, "guest_busy", "too much is under way in the guest already").
			WithHint("let some of it end, and try again").WithCause(err)
	case errors.As(err, &answer) && answer.Code == wire.CodeUnknownOp:
		return errs.New(errs.Unsupported, "agent_too_old", "the agent in the guest is too old for this").
			WithHint("restart the VM: it boots with the present agent").WithCause(err)
	case errors.As(err, &answer):
		return refused(answer)
	default:
		return unavailable("the agent in the guest does not answer any more").WithCause(err)
	}
}
