package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// quotaCommand is hatch quota.
type quotaCommand struct {
	*printer
	*connection
}

// resource is something that users own a bounded amount of.
type resource struct {
	name  string
	limit func(*api.QuotaLimits) **int64
	of    func(api.Usage) api.Amount
}

// resources are all resources, in the order in which they are shown.
var resources = []resource{
	{"vms", func(l *api.QuotaLimits) **int64 { return &l.VMs }, func(u api.Usage) api.Amount { return u.VMs }},
	{"vcpus", func(l *api.QuotaLimits) **int64 { return &l.VCPUs }, func(u api.Usage) api.Amount { return u.VCPUs }},
	{"memory_mib", func(l *api.QuotaLimits) **int64 { return &l.MemoryMiB }, func(u api.Usage) api.Amount { return u.MemoryMiB }},
	{"disk_mib", func(l *api.QuotaLimits) **int64 { return &l.DiskMiB }, func(u api.Usage) api.Amount { return u.DiskMiB }},
	{"snapshots", func(l *api.QuotaLimits) **int64 { return &l.Snapshots }, func(u api.Usage) api.Amount { return u.Snapshots }},
	{"snapshot_mib", func(l *api.QuotaLimits) **int64 { return &l.SnapshotMiB }, func(u api.Usage) api.Amount { return u.SnapshotMiB }},
	{"image_mib", func(l *api.QuotaLimits) **int64 { return &l.ImageMiB }, func(u api.Usage) api.Amount { return u.ImageMiB }},
	{"routes", func(l *api.QuotaLimits) **int64 { return &l.Routes }, func(u api.Usage) api.Amount { return u.Routes }},
	{"webhooks", func(l *api.QuotaLimits) **int64 { return &l.Webhooks }, func(u api.Usage) api.Amount { return u.Webhooks }},
}

// Words for limits that are no number.
const (
	limitDefault   = "default"
	limitNone      = "none"
	limitUnlimited = "unlimited"
)

func resourceNames() []string {
	names := make([]string, len(resources))
	for i, r := range resources {
		names[i] = r.name
	}
	return names
}

func (c quotaCommand) command() *cobra.Command {
	var sets []string
	cmd := &cobra.Command{
		Use: "quota [USER]", Short: "Show what a user owns and may own, or change its limits",
		Long: `Show how much the caller, or another user, owns and may own. Only admins see and
change the quota of a user that they name.

A limit is a number, none, unlimited, or default for that of the server. The
resources are ` + strings.Join(resourceNames(), ", ") + `.`,
		Example: "  hatch quota\n  hatch quota alice --set vms=5 --set memory_mib=4096 --set webhooks=none",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(cmd, "%s takes one user at most; %d were given", cmd.CommandPath(), len(args))
			}
			if len(args) == 0 && len(sets) > 0 {
				return usage(cmd, "--set needs the user whose limits to change")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			user := strings.Join(args, "")
			shown, err := c.apply(cmd.Context(), user, sets)
			if err != nil {
				return withContext(err, strings.TrimSpace("cannot use the quota "+user))
			}
			return c.printOne(shown, func() { _ = usageTable(shown).write(c.out, false) })
		},
	}
	cmd.Flags().StringArrayVar(&sets, "set", nil, "change a limit, as `resource=limit` (repeatable)")
	return cmd
}

// apply changes limits of a user, if any are given, and returns what it owns. No user is
// the caller.
func (c quotaCommand) apply(ctx context.Context, user string, sets []string) (api.Usage, error) {
	changes, err := parseLimits(sets)
	if err != nil {
		return api.Usage{}, err
	}
	server, err := c.client()
	if err != nil {
		return api.Usage{}, err
	}
	if user == "" {
		return server.Usage(ctx)
	}
	if len(changes) > 0 {
		if err := setLimits(ctx, server, user, changes); err != nil {
			return api.Usage{}, err
		}
	}
	return server.UserUsage(ctx, user)
}

// limitChange changes one limit; nil means that of the server.
type limitChange struct {
	resource
	most *int64
}

func setLimits(ctx context.Context, server *client.Client, user string, changes []limitChange) error {
	now, err := server.UserQuota(ctx, user)
	if err != nil {
		return err
	}
	for _, change := range changes {
		*change.limit(&now.Limits) = change.most
	}
	_, err = server.SetUserQuota(ctx, user, now.Limits)
	return err
}

func parseLimits(sets []string) ([]limitChange, error) {
	var changes []limitChange
	for _, set := range sets {
		name, value, _ := strings.Cut(set, "=")
		at := slices.IndexFunc(resources, func(r resource) bool { return r.name == name })
		if at < 0 {
			return nil, fmt.Errorf("--set %s: %q is no resource; want one of %s", set, name, strings.Join(resourceNames(), ", "))
		}
		most, err := parseLimit(value)
		if err != nil {
			return nil, fmt.Errorf("--set %s: %w", set, err)
		}
		changes = append(changes, limitChange{resources[at], most})
	}
	return changes, nil
}

func parseLimit(text string) (*int64, error) {
	switch text {
	case limitDefault:
		return nil, nil //nolint:nilnil // no limit of the user's own
	case limitNone:
		return new(int64(0)), nil
	case limitUnlimited:
		return new(int64(-1)), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%q is no limit: want a number, none, unlimited or default", text)
	}
	return &n, nil
}

func usageTable(u api.Usage) table {
	t := table{head: []string{"RESOURCE", "USED", "LIMIT"}}
	for _, r := range resources {
		amount, limit := r.of(u), limitUnlimited
		if amount.Limit != nil {
			limit = strconv.FormatInt(*amount.Limit, 10)
		}
		t.row(r.name, strconv.FormatInt(amount.Used, 10), limit)
	}
	return t
}
