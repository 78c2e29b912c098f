package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/hatchvm/hatch/api"
)

// rateLimits returns the limits of the spec, which it creates if missing: a flag
// with 0 means no limits, not those of a template.
func rateLimits(spec *api.MachineSpec) *api.RateLimits {
	if spec.RateLimits == nil {
		spec.RateLimits = &api.RateLimits{}
	}
	return spec.RateLimits
}

func diskLimit(spec *api.MachineSpec) *api.DiskRateLimit {
	l := rateLimits(spec)
	if l.Disk == nil {
		l.Disk = &api.DiskRateLimit{}
	}
	return l.Disk
}

// networkLimit returns nil for 0.
func networkLimit(flag, text string) (*api.NetworkRateLimit, error) {
	n, err := rate(flag, text)
	if n == 0 {
		return nil, err
	}
	return &api.NetworkRateLimit{BytesPerSecond: n}, err
}

var rateForm = regexp.MustCompile(`^([0-9]{1,11})(?:([kmg])(?:i?b)?)?$`)

var rateUnits = map[string]int64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

// rate reads a number of bytes, or a number with a unit.
func rate(flag, text string) (int64, error) {
	parts := rateForm.FindStringSubmatch(strings.ToLower(text))
	if parts == nil {
		return 0, usageError{fmt.Errorf("--%s takes a whole number of bytes, or one with k, m or g, as 512k or 20m, not %q", flag, text)}
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("--%s: %w", flag, err)
	}
	unit := rateUnits[parts[2]]
	if n > math.MaxInt64/unit {
		return 0, usageError{fmt.Errorf("--%s: %q is too large; the limit is %dg", flag, text, int64(math.MaxInt64>>30))}
	}
	return n * unit, nil
}
