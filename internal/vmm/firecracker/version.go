//go:build linux && amd64

package firecracker

import (
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vmm/firecracker/release"
)

type version = release.Version

// parseVersion reads a version with more behind it, of a release that can be used.
func parseVersion(text string) (version, error) {
	v, ok := release.Find(text)
	if !ok {
		return version{}, errs.New(errs.Unsupported, "firecracker_unknown", "the Firecracker program does not tell its version")
	}
	if v.Before(release.Oldest) {
		return version{}, errs.New(errs.Unsupported, "firecracker_too_old", "Firecracker %s is too old: %s or newer is needed", v, release.Oldest).
			WithHint("install a newer release of Firecracker and its jailer")
	}
	return v, nil
}

// checkSave refuses releases whose saved machines are of no use.
func checkSave(v version) error {
	if v.LosesVsock() {
		return errs.New(errs.Unsupported, "firecracker_faulty", "VMs cannot be saved under Firecracker %s: nobody could reach the agent in a woken guest", v).
			WithHint("install Firecracker 1.15, or 1.16.2 or newer")
	}
	return nil
}

// Types of snapshots.
const (
	snapshotFull = "Full"
	snapshotDiff = "Diff"
)

// snapshotType says how to write a guest's memory.
func snapshotType(v version, memMiB int) string {
	if v.SpoilsLargeDiffs() && memMiB > 3<<10 {
		return snapshotFull
	}
	return snapshotDiff
}
