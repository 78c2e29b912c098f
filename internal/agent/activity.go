package agent

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/agent/awake"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Activity implements [wire.ActivityHandler].
func (a *Agent) Activity() wire.Activity {
	left := a.awake.Left() + time.Millisecond - 1 // rounded up: some is left
	return wire.Activity{KeepAwakeMillis: min(left, wire.MaxKeepAwake).Milliseconds(), Commands: a.processes.Commands()}
}

// serveAwake serves programs that keep the guest awake, until ctx is done.
func (a *Agent) serveAwake(ctx context.Context) {
	l, err := awake.Listen(ctx, awake.Socket)
	if err == nil {
		err = a.awake.Serve(ctx, l)
	}
	if ctx.Err() == nil {
		a.log.Error("programs cannot keep the guest awake", logkey.Error, err)
	}
}
