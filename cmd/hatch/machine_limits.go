package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
)

// limitFlags are the flags that bound how fast a machine moves data.
type limitFlags struct {
	disk, networkIn, networkOut string
	diskOps                     int64
}

func (f *limitFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.disk, "disk-rate", "", "`bytes` per second to and from each disk, as 512k or 20m; 0 for no limit")
	flags.Int64Var(&f.diskOps, "disk-ops", 0, "reads and writes per second of each disk; 0 for no limit")
	flags.StringVar(&f.networkIn, "net-in-rate", "", "`bytes` per second that the guest receives, as 512k or 20m; 0 for no limit")
	flags.StringVar(&f.networkOut, "net-out-rate", "", "`bytes` per second that the guest sends, as 512k or 20m; 0 for no limit")
}

// read returns nil when nothing was given, and no limits when only zeros were.
func (f *limitFlags) read(cmd *cobra.Command) (*api.RateLimits, error) {
	disk := api.DiskRateLimit{OpsPerSecond: f.diskOps}
	var in, out api.NetworkRateLimit
	given := cmd.Flags().Changed("disk-ops")
	for _, r := range []struct {
		flag, text string
		into       *int64
	}{
		{"disk-rate", f.disk, &disk.BytesPerSecond},
		{"net-in-rate", f.networkIn, &in.BytesPerSecond},
		{"net-out-rate", f.networkOut, &out.BytesPerSecond},
	} {
		if !cmd.Flags().Changed(r.flag) {
			continue
		}
		given = true
		var err error
		if *r.into, err = rate(r.flag, r.text); err != nil {
			return nil, err
		}
	}
	if !given {
		return nil, nil
	}
	return &api.RateLimits{Disk: unlessZero(disk), NetworkIn: unlessZero(in), NetworkOut: unlessZero(out)}, nil
}

func unlessZero[T comparable](v T) *T {
	if v == *new(T) {
		return nil
	}
	return &v
}

var rateForm = regexp.MustCompile(`^([0-9]{1,11})(?:([kmg])(?:i?b)?)?$`)

var rateUnits = map[string]int64{"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

// rate reads bytes, or a number with a unit.
func rate(flag, text string) (int64, error) {
	parts := rateForm.FindStringSubmatch(strings.ToLower(text))
	if parts == nil {
		return 0, fmt.Errorf("--%s takes a whole number of bytes, or one with k, m or g, as 512k or 20m, not %q", flag, text)
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("--%s: %w", flag, err)
	}
	unit := rateUnits[parts[2]]
	if n > math.MaxInt64/unit {
		return 0, fmt.Errorf("--%s: %q is too much; the most that can be said is %dg", flag, text, int64(math.MaxInt64>>30))
	}
	return n * unit, nil
}
