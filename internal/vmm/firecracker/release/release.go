// Package release knows Firecracker's releases and their bugs.
//
// The driver uses it to avoid a bug, the doctor to report it. No two releases are known
// to load each other's snapshots: the format also changes in patches, as in 1.16.2, which
// loads none of 1.16.0 and 1.16.1, nor they its. So a snapshot needs its own release
// (vmm.Saved). Start at [Find].
package release

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// Version is a release: major, minor, patch.
type Version [3]int

// Oldest is the oldest release that has all that the driver uses.
var Oldest = Version{1, 12, 0}

// Recommended is the newest release without a known bug.
var Recommended = Version{1, 16, 2}

var pattern = regexp.MustCompile(`^(\d{1,6})\.(\d{1,6})\.(\d{1,6})`)

// Find reads the version at the beginning of text, such as "1.12.1-dev".
func Find(text string) (v Version, ok bool) {
	found := pattern.FindStringSubmatch(text)
	if found == nil {
		return Version{}, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(found[i+1]) // at most 6 digits
	}
	return v, true
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool { return slices.Compare(v[:], w[:]) < 0 }

// LosesVsock reports whether, in this release, the host cannot connect to the agent of
// a guest that was paused and resumed, or woken.
func (v Version) LosesVsock() bool { return v == Version{1, 16, 0} || v == Version{1, 16, 1} }

// CorruptsLargeDiffs reports whether, in this release, a differential snapshot of more
// than 3 GiB is corrupt, because of the gap for devices there.
func (v Version) CorruptsLargeDiffs() bool { return v.Before(Version{1, 15, 0}) }

// ReportsFreePages reports whether the balloon of this release has free page
// reporting.
func (v Version) ReportsFreePages() bool { return !v.Before(Version{1, 14, 0}) }
