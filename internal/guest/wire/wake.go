package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// OpWoken tells the agent that its guest has slept: WokenArgs → nothing, once
// the guest has set its clock and stirred its randomness. A guest that is a copy
// is told OpRecast instead.
const OpWoken Op = "woken"

// maxSeed bounds the randomness that a host gives, in bytes.
const maxSeed = 512

// WokenArgs are the arguments of OpWoken.
type WokenArgs struct {
	UnixNanos int64  `json:"unix_ns"` // the time now
	Seed      []byte `json:"seed"`    // randomness that nobody else has
}

func (a WokenArgs) check() error {
	if a.UnixNanos <= 0 {
		return errors.New("unix_ns must be the time now")
	}
	if len(a.Seed) > maxSeed {
		return fmt.Errorf("seed must have at most %d bytes", maxSeed)
	}
	return nil
}

// Woken tells the agent the time, and gives it randomness. An agent that is
// too old to know is no error.
func (c *Client) Woken(ctx context.Context, seed []byte) error {
	err := c.call(ctx, OpWoken, WokenArgs{UnixNanos: time.Now().UnixNano(), Seed: seed}, nil)
	var answer *RemoteError
	if errors.As(err, &answer) && answer.Code == CodeUnknownOp {
		return nil
	}
	return err
}

// WokenHandler puts a guest right that has slept. A Handler that is none does
// not know the operation.
type WokenHandler interface {
	Woken(now time.Time, seed []byte) error
}

// woken reports whether asked was its to serve.
func (r request) woken(asked Request) bool {
	handler, ok := r.handler.(WokenHandler)
	if !ok || asked.Op != OpWoken {
		return false
	}
	var args WokenArgs
	if err := json.Unmarshal(asked.Args, &args); err != nil || args.check() != nil {
		sendError(r.stream, CodeInvalid, "the arguments of woken are not understood")
		return true
	}
	if err := handler.Woken(time.Unix(0, args.UnixNanos), args.Seed); err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, nil)
	return true
}
