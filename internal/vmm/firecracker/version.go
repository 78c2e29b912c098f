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

var versionForm = regexp.MustCompile(`^Firecracker v(\d{1,6})\.(\d{1,6})\.(\d{1,6})`)

// parseVersion reads what `firecracker --version` prints.
func parseVersion(out string) (version, error) {
	found := versionForm.FindStringSubmatch(out)
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

// fault says what is known to be wrong with a release, "" for most of them.
func (v version) fault() string {
	switch {
	case v == version{1, 16, 0} || v == version{1, 16, 1}:
		return "after a wake the agent in the guest cannot be reached; use 1.15, or 1.16.2 and newer"
	case v.before(version{1, 15, 0}):
		return "differential snapshots of guests with more than 3 GiB are damaged; full ones are written for them, which takes longer"
	}
	return ""
}
