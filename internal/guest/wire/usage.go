package wire

import "context"

// OpUsage reads the guest's resource usage: nothing → Usage.
const OpUsage Op = "usage"

// Usage is a guest's resource usage by its kernel's counters. Sizes are in bytes; times
// count from the guest's boot.
type Usage struct {
	UptimeMillis  int64      `json:"uptime_ms"`
	CPUBusyMillis int64      `json:"cpu_busy_ms"` // sum of all CPUs, without idle and I/O wait
	Load          [3]float64 `json:"load"`        // over 1, 5 and 15 minutes
	MemTotal      int64      `json:"mem_total"`
	MemAvailable  int64      `json:"mem_available"`
	DiskTotal     int64      `json:"disk_total"` // of the root file system
	DiskFree      int64      `json:"disk_free"`  // root's reserve included
}

// Usage reads the guest's resource usage.
func (c *Client) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	err := c.call(ctx, OpUsage, nil, &u)
	return u, err
}

// UsageHandler reads the guest's resource usage. A [Handler] that does not implement it
// does not know the operation.
type UsageHandler interface {
	Usage() (Usage, error)
}

// usage serves OpUsage. It reports whether it served the request.
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
