package wire

import (
	"context"
	"time"
)

// OpActivity reads what keeps the guest from being idle: nothing → Activity.
const OpActivity Op = "activity"

// MaxKeepAwake limits for how long a program in the guest can keep it awake by one request.
const MaxKeepAwake = 24 * time.Hour

// Activity is what keeps a guest from being idle.
type Activity struct {
	KeepAwakeMillis int64 `json:"keep_awake_ms"` // how much longer, at most MaxKeepAwake; the guest's clock may be wrong
	Commands        int   `json:"commands"`      // processes of the host that run
}

// Activity reads what keeps the guest from being idle.
func (c *Client) Activity(ctx context.Context) (Activity, error) {
	var a Activity
	err := c.call(ctx, OpActivity, nil, &a)
	return a, err
}

// ActivityHandler reads what keeps the guest from being idle. A [Handler] that does not
// implement it does not know the operation.
type ActivityHandler interface {
	Activity() Activity
}

// activity serves OpActivity. It reports whether it served the request.
func (r request) activity(asked Request) bool {
	handler, ok := r.handler.(ActivityHandler)
	if !ok || asked.Op != OpActivity {
		return false
	}
	_ = sendResult(r.stream, handler.Activity())
	return true
}
