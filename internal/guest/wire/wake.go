package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// OpWoken informs the agent that its guest has slept: WokenArgs → nothing, once the guest
// has set its clock and reseeded its random number generator. The agent of a clone gets
// OpReidentify instead.
const OpWoken Op = "woken"

// maxSeed limits the seed, in bytes.
const maxSeed = 512

// WokenArgs are the arguments of OpWoken.
type WokenArgs struct {
	UnixNanos int64  `json:"unix_ns"` // the current time
	Seed      []byte `json:"seed"`    // random bytes that only this guest gets
}

func (a WokenArgs) check() error {
	if a.UnixNanos <= 0 {
		return errors.New("unix_ns must be the current time, after 1970")
	}
	if len(a.Seed) > maxSeed {
		return fmt.Errorf("seed must have at most %d bytes", maxSeed)
	}
	return nil
}

// Woken sends the time and a seed to the agent. It ignores that an agent does not know the
// operation.
func (c *Client) Woken(ctx context.Context, seed []byte) error {
	err := c.call(ctx, OpWoken, WokenArgs{UnixNanos: time.Now().UnixNano(), Seed: seed}, nil)
	var answer *RemoteError
	if errors.As(err, &answer) && answer.Code == CodeUnknownOp {
		return nil
	}
	return err
}

// WokenHandler sets the clock and seed of a guest that has slept. A [Handler] that does not
// implement it does not know the operation.
type WokenHandler interface {
	Woken(now time.Time, seed []byte) error
}

// woken serves OpWoken. It reports whether it served the request.
func (r request) woken(asked Request) bool {
	handler, ok := r.handler.(WokenHandler)
	if !ok || asked.Op != OpWoken {
		return false
	}
	var args WokenArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || args.check() != nil {
		sendError(r.stream, CodeInvalid, "invalid arguments of woken")
		return true
	}
	if err := handler.Woken(time.Unix(0, args.UnixNanos), args.Seed); err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, nil)
	return true
}
