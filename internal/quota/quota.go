// Package quota has the words of quotas: what a user may own at a time, how much of it
// is used, and the error of a request that asks for more.
//
// It counts nothing: internal/store does, in the transaction that takes. A user has the
// limits of the server, except where an admin has set others. hatchd itself has none.
// Start at [Resource] and [Limits.Check].
package quota

import (
	"maps"

	"github.com/hatchvm/hatch/internal/errs"
)

// Resource is something that users own a bounded amount of.
type Resource string

// The resources. VCPUs and Memory are those of VMs with a VMM: a sleeping or stopped VM
// uses neither, a paused one both.
const (
	VMs         Resource = "vms"
	VCPUs       Resource = "vcpus"
	Memory      Resource = "memory_mib"
	Disk        Resource = "disk_mib" // of VMs, as large as the guests see them
	Snapshots   Resource = "snapshots"
	SnapshotMiB Resource = "snapshot_mib" // on the host's disk
	ImageMiB    Resource = "image_mib"
	Routes      Resource = "routes"
	Webhooks    Resource = "webhooks"
)

// Resources are all resources, in the order in which they are shown and checked.
var Resources = []Resource{VMs, VCPUs, Memory, Disk, Snapshots, SnapshotMiB, ImageMiB, Routes, Webhooks}

// Code is the code of the error of [Limits.Check].
const Code = "quota_exceeded"

// Unlimited is the value of a user's own limit that allows any amount.
const Unlimited = -1

// Most is the highest limit.
const Most = 1 << 40

// Amounts are amounts of resources; an absent one is 0.
type Amounts map[Resource]int64

// Limits are the highest amounts allowed. An absent resource has no limit.
type Limits map[Resource]int64

// Own are the limits that an admin has set for one user: an amount, or [Unlimited]. An
// absent resource has the server's limit.
type Own map[Resource]int64

// Usage is what one user may own, and owns.
type Usage struct {
	UserID string
	Own    Own
	Limits Limits // those that count: the user's own, else the server's
	Used   Amounts
}

// With returns the server's limits as a user's own change them.
func (l Limits) With(own Own) Limits {
	all := maps.Clone(l)
	if all == nil {
		all = Limits{}
	}
	for r, most := range own {
		if all[r] = most; most == Unlimited {
			delete(all, r)
		}
	}
	return all
}

// Check returns an error if what is asked for would exceed a limit. What lowers an amount
// is always allowed. Errors: errs.Forbidden with code quota_exceeded, whose field is the
// resource.
func (l Limits) Check(used, asked Amounts) error {
	for _, r := range Resources {
		allowed, limited := l[r]
		if limited && asked[r] > 0 && used[r]+asked[r] > allowed {
			return Exceeded(r, used[r], asked[r], allowed)
		}
	}
	return nil
}

// Limited reports whether any of the resources asked for has a limit.
func (l Limits) Limited(asked Amounts) bool {
	for r, n := range asked {
		if _, limited := l[r]; limited && n > 0 {
			return true
		}
	}
	return false
}

// hints say what a user can do about a quota.
var hints = map[Resource]string{
	VMs: "delete a VM", VCPUs: "stop a VM or put one to sleep", Memory: "stop a VM or put one to sleep", Disk: "delete a VM, or ask for a smaller disk",
	Snapshots: "delete a snapshot", SnapshotMiB: "delete a snapshot", ImageMiB: "delete an image", Routes: "delete a route", Webhooks: "delete a webhook",
}

// Exceeded returns the error of a request that asks for more than is left.
func Exceeded(r Resource, used, asked, allowed int64) *errs.Error {
	return errs.New(errs.Forbidden, Code, "%s: the quota is exceeded: %d used, %d asked for, %d allowed", r, used, asked, allowed).
		WithField(string(r)).WithHint("%s, or ask an admin for more; GET /me/usage shows all quotas", hints[r])
}

// Check returns an error if a limit is not valid. Errors: errs.Invalid.
func (o Own) Check() error {
	for _, r := range Resources {
		if n, set := o[r]; set && (n < Unlimited || n > Most) {
			return errs.InvalidField(string(r), "%d is not a limit: want 0 to %d, or %d for no limit", n, int64(Most), Unlimited)
		}
	}
	return nil
}

// MiB returns bytes in MiB, rounded up.
func MiB(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 }
