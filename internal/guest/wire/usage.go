package wire

import "context"

// OpUsage asks what the guest uses: nothing → Usage.
const OpUsage Op = "usage"

// Usage is what a guest's kernel says of itself. Sizes are in bytes; times
// count from the guest's boot.
type Usage struct {
	UptimeMillis  int64      `json:"uptime_ms"`
	CPUBusyMillis int64      `json:"cpu_busy_ms"` // of all CPUs together, without waiting
	Load          [3]float64 `json:"load"`        // over 1, 5 and 15 minutes
	MemTotal      int64      `json:"mem_total"`
	MemAvailable  int64      `json:"mem_available"`
	DiskTotal     int64      `json:"disk_total"` // of the root file system
	DiskFree      int64      `json:"disk_free"`  // root's reserve included
}

// Usage asks what the guest uses at present.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	err := c.call(ctx, OpUsage, nil, &u)
	return u, err
}

// UsageHandler tells what the guest uses. A Handler that is none does not know
// the operation.
type UsageHandler interface {
	Usage() (Usage, error)
}

// usage reports whether asked was its to serve.
func (r request) usage(asked Request) bool {
	handler, ok := r.handler.(UsageHandler)
	if !ok || asked.Op != OpUsage {
		return false
	}
	u, err := handler.Usage()
	if err != nil {
		sendFailure(r.stream, err)
		return true
	}
	_ = sendResult(r.stream, u)
	return true
}
