package vmm

import "github.com/hatchvm/hatch/internal/errs"

// RateLimits bound how fast a guest may move data. After a rest it may move up
// to a second's worth at once. What is zero is not bounded.
type RateLimits struct {
	Disk       DiskLimit    `json:"disk,omitzero"`        // of each disk by itself, reads and writes together
	NetworkIn  NetworkLimit `json:"network_in,omitzero"`  // what the guest receives
	NetworkOut NetworkLimit `json:"network_out,omitzero"` // what the guest sends
}

// DiskLimit bounds the use of a disk.
type DiskLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitzero"`
	OpsPerSecond   int64 `json:"ops_per_second,omitzero"`
}

// NetworkLimit bounds one direction of a network device.
type NetworkLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitzero"`
}

// Network reports whether the network is bounded.
func (l RateLimits) Network() bool {
	return l.NetworkIn != NetworkLimit{} || l.NetworkOut != NetworkLimit{}
}

// Bounds of what can be given. With less a guest does not get on; what is above
// no VMM counts without an overflow.
const (
	minBytesPerSecond, maxBytesPerSecond = 64 << 10, 10_000_000_000
	minOpsPerSecond, maxOpsPerSecond     = 10, 1_000_000
)

// Check refuses what is out of range. Errors: errs.Invalid, which name the field
// as requests have it.
func (l RateLimits) Check() error {
	for _, f := range []struct {
		name               string
		value, least, most int64
	}{
		{"disk.bytes_per_second", l.Disk.BytesPerSecond, minBytesPerSecond, maxBytesPerSecond},
		{"disk.ops_per_second", l.Disk.OpsPerSecond, minOpsPerSecond, maxOpsPerSecond},
		{"network_in.bytes_per_second", l.NetworkIn.BytesPerSecond, minBytesPerSecond, maxBytesPerSecond},
		{"network_out.bytes_per_second", l.NetworkOut.BytesPerSecond, minBytesPerSecond, maxBytesPerSecond},
	} {
		if f.value != 0 && (f.value < f.least || f.value > f.most) {
			return errs.InvalidField("rate_limits."+f.name, "%d is out of range; %d to %d can be given, or nothing for no limit", f.value, f.least, f.most).
				WithCode("invalid_rate_limits")
		}
	}
	return nil
}
