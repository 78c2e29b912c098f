//go:build linux && amd64

package firecracker

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/hatchvm/hatch/internal/errs"
)

// version is a release of Firecracker.
type version struct{ major, minor, patch int }

// oldest is the oldest release that does what is needed.
var oldest = version{1, 12, 0}

var versionForm = regexp.MustCompile(`^(\d{1,6})\.(\d{1,6})\.(\d{1,6})`)

// parseVersion reads a version with more behind it.
func parseVersion(text string) (version, error) {
	found := versionForm.FindStringSubmatch(text)
	if found == nil {
		return version{}, errs.New(errs.Unsupported, "firecracker_unknown", "the Firecracker program does not tell its version")
	}
	var v version
	for i, part := range []*int{&v.major, &v.minor, &v.patch} {
		*part, _ = strconv.Atoi(found[i+1]) // digits, and few of them
	}
	if v.before(oldest) {
		return version{}, errs.New(errs.Unsupported, "firecracker_too_old", "Firecracker %s is too old: %s or newer is needed", v, oldest).
			WithHint("install a newer release of Firecracker and its jailer")
	}
	return v, nil
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) before(w version) bool {
	switch {
	case v.major != w.major:
		return v.major < w.major
	case v.minor != w.minor:
		return v.minor < w.minor
	}
	return v.patch < w.patch
}

// losesVsock reports whether, in this release, the host cannot reach a guest's
// agent any more once it was woken.
func (v version) losesVsock() bool { return v == version{1, 16, 0} || v == version{1, 16, 1} }

// checkSave refuses releases whose saved machines are of no use.
func (v version) checkSave() error {
	if v.losesVsock() {
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

// snapshotType says how to write a guest's memory. Before 1.15 a differential
// snapshot of more than 3 GiB is damaged, because of the gap for devices there.
func (v version) snapshotType(memMiB int) string {
	if v.before(version{1, 15, 0}) && memMiB > 3<<10 {
		return snapshotFull
	}
	return snapshotDiff
}
