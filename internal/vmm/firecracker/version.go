//go:build linux && amd64

package firecracker

import (
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm/firecracker/release"
)

type version = release.Version

// parseVersion reads the version at the beginning of text. Errors: errs.Unsupported
// when it is too old.
func parseVersion(text string) (version, error) {
	v, ok := release.Find(text)
	if !ok {
		return version{}, errs.New(errs.Unsupported, "firecracker_unknown", "Firecracker does not report a valid version")
	}
	if v.Before(release.Oldest) {
		return version{}, errs.New(errs.Unsupported, "firecracker_too_old", "Firecracker %s is too old: %s or newer is needed", v, release.Oldest).
			WithHint("install Firecracker %s and its jailer", release.Recommended)
	}
	return v, nil
}

// checkSave returns an error for releases with a bug that makes saved machines
// unusable.
func checkSave(v version) error {
	if v.LosesVsock() {
		return errs.New(errs.Unsupported, "firecracker_faulty", "VMs cannot be saved under Firecracker %s: the agent in a woken guest cannot be reached", v).
			WithHint("install Firecracker %s and its jailer", release.Recommended)
	}
	return nil
}

// Types of snapshots.
const (
	snapshotFull = "Full"
	snapshotDiff = "Diff"
)

// snapshotType returns the type of a snapshot of a guest with memMiB of memory.
func snapshotType(v version, memMiB int) string {
	if v.CorruptsLargeDiffs() && memMiB > 3<<10 {
		return snapshotFull
	}
	return snapshotDiff
}
