package guest

import (
	"errors"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

func unavailable(message string) *errs.Error {
	return errs.New(errs.Unavailable, "agent_unavailable", "%s", message).
		WithHint("wait until the guest has booted, or force the operation")
}

func noAgent() *errs.Error { return unavailable("no agent answers in the guest") }

func sessionClosed() *errs.Error {
	return unavailable("the session with the guest's agent is closed")
}

// invalidReply is the error of a reply that hatch-agent does not send.
func invalidReply(detail string) error {
	return unavailable("the agent in the guest sent an invalid reply").WithCause(errors.New(detail))
}

// requestError translates the error of a request to the agent for the caller of the API.
// translate translates an error that the agent answered.
func requestError(err error, translate func(*wire.RemoteError) error) error {
	var answer *wire.RemoteError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wire.ErrDetached):
		return errs.New(errs.Unavailable, "detached", "the guest's agent detached a reader that was too slow").
			WithHint("attach again at the offset of the last output").WithCause(err)
	case errors.Is(err, wire.ErrBusy), errors.As(err, &answer) && answer.Code == wire.CodeBusy:
		return errs.New(errs.TooMany, "guest_busy", "the guest's agent is serving its maximum number of requests").
			WithHint("try again when one has ended").WithCause(err)
	case errors.As(err, &answer) && answer.Code == wire.CodeUnknownOp:
		return errs.New(errs.Unsupported, "agent_too_old", "the agent in the guest is too old for this").
			WithHint("restart the VM: it then boots with the current agent").WithCause(err)
	case errors.As(err, &answer):
		return translate(answer)
	default:
		return unavailable("the agent in the guest no longer answers").WithCause(err)
	}
}
