package vmm

import "github.com/hatchvm/hatch/internal/errs"

// RateLimits limit a guest's I/O. After an idle time the guest may use one
// second's worth at once. 0 means no limit.
type RateLimits struct {
	Disk       DiskLimit    `json:"disk,omitzero"`        // of each disk separately, reads and writes together
	NetworkIn  NetworkLimit `json:"network_in,omitzero"`  // what the guest receives
	NetworkOut NetworkLimit `json:"network_out,omitzero"` // what the guest sends
}

// DiskLimit is the rate limit of a disk.
type DiskLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitzero"`
	OpsPerSecond   int64 `json:"ops_per_second,omitzero"`
}

// NetworkLimit is the rate limit of one direction of a network device.
type NetworkLimit struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitzero"`
}

// Network reports whether the network is limited.
func (l RateLimits) Network() bool {
	return l.NetworkIn != NetworkLimit{} || l.NetworkOut != NetworkLimit{}
}

// Ranges of the limits. With a lower limit a guest makes no progress; with a higher
// one the VMMs' counters overflow.
const (
	minBytesPerSecond, maxBytesPerSecond = 64 << 10, 10_000_000_000
	minOpsPerSecond, maxOpsPerSecond     = 10, 1_000_000
)

// Check checks the ranges. Errors: errs.Invalid, with the field's name in
// requests.
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
