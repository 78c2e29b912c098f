//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"net/http"

	"github.com/hatchvm/hatch/internal/vmm"
)

// Bodies of requests, and parts of them, as Firecracker's API description names
// their fields.
type (
	driveLimit struct {
		Both *rateLimiter `json:"rate_limiter,omitempty"` // reads and writes
	}
	networkLimits struct {
		In  *rateLimiter `json:"rx_rate_limiter,omitempty"`
		Out *rateLimiter `json:"tx_rate_limiter,omitempty"`
	}
	rateLimiter struct {
		Bytes *tokenBucket `json:"bandwidth,omitempty"`
		Ops   *tokenBucket `json:"ops,omitempty"`
	}
	tokenBucket struct {
		Size         int64 `json:"size"`
		RefillMillis int64 `json:"refill_time"`
	}
	drivePatch struct {
		ID string `json:"drive_id"`
		driveLimit
	}
	networkPatch struct {
		ID string `json:"iface_id"`
		networkLimits
	}
)

func limitOfDrives(l vmm.RateLimits) driveLimit {
	return driveLimit{newRateLimiter(l.Disk.BytesPerSecond, l.Disk.OpsPerSecond)}
}

func limitsOfNetwork(l vmm.RateLimits) networkLimits {
	return networkLimits{In: newRateLimiter(l.NetworkIn.BytesPerSecond, 0), Out: newRateLimiter(l.NetworkOut.BytesPerSecond, 0)}
}

// newRateLimiter returns nil if neither is limited.
func newRateLimiter(bytes, ops int64) *rateLimiter {
	if bytes == 0 && ops == 0 {
		return nil
	}
	return &rateLimiter{Bytes: perSecond(bytes), Ops: perSecond(ops)}
}

func perSecond(n int64) *tokenBucket {
	if n == 0 {
		return nil
	}
	return &tokenBucket{Size: n, RefillMillis: 1000}
}

// setLimits sets the limits of a machine that was loaded: it may have been saved
// without any.
func setLimits(ctx context.Context, a *api, s vmm.Spec) error {
	var failures []error
	if l := limitOfDrives(s.Limits); l != (driveLimit{}) {
		for i := range s.Disks {
			name := diskFile(i)
			failures = append(failures, a.call(ctx, http.MethodPatch, "/drives/"+name, drivePatch{name, l}, nil))
		}
	}
	if l := limitsOfNetwork(s.Limits); s.NIC != nil && l != (networkLimits{}) {
		failures = append(failures, a.call(ctx, http.MethodPatch, "/network-interfaces/"+networkID, networkPatch{networkID, l}, nil))
	}
	return errors.Join(failures...)
}
