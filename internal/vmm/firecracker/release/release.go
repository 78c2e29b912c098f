// Package release knows Firecracker's releases and their faults.
//
// What a release cannot do is written down here once, for the driver, which
// avoids it, and for the doctor, which tells of it. Start at [Find].
package release

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// Version is a release: major, minor, patch.
type Version [3]int

// Oldest is the oldest release that does what is needed.
var Oldest = Version{1, 12, 0}

var form = regexp.MustCompile(`^(\d{1,6})\.(\d{1,6})\.(\d{1,6})`)

// Find reads a version with more behind it, such as "1.12.1-dev".
func Find(text string) (v Version, ok bool) {
	found := form.FindStringSubmatch(text)
	if found == nil {
		return Version{}, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(found[i+1]) // digits, and few of them
	}
	return v, true
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool { return slices.Compare(v[:], w[:]) < 0 }

// LosesVsock reports whether, in this release, the host cannot reach a guest's
// agent any more once it was woken.
func (v Version) LosesVsock() bool { return v == Version{1, 16, 0} || v == Version{1, 16, 1} }

// SpoilsLargeDiffs reports whether a differential snapshot of more than 3 GiB is
// damaged in this release, because of the gap for devices there.
func (v Version) SpoilsLargeDiffs() bool { return v.Before(Version{1, 15, 0}) }

// ReportsFreePages reports whether a guest can tell this release which pages it
// does not use.
func (v Version) ReportsFreePages() bool { return !v.Before(Version{1, 14, 0}) }
