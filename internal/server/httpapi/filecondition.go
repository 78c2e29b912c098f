package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/file"
)

// FileConditions are the conditions of a request about a file in a VM. It is exported
// for huma, which ignores unexported embedded structs.
type FileConditions struct {
	Conditions
	IfUnmodifiedSince string `header:"If-Unmodified-Since" doc:"A Last-Modified; a request whose file was changed later is refused with 412. Ignored with If-Match."`
}

// compare compares the conditions of a GET with a file, in the order of RFC 9110,
// section 13.2.2. A date that cannot be read is ignored, as the RFC says.
func (c FileConditions) compare(now file.Info, modifiedSince string) (current bool, err error) {
	changed := now.ModifiedAt.Truncate(time.Second)
	if unmodified, err := http.ParseTime(c.IfUnmodifiedSince); err == nil && c.IfMatch == "" && changed.After(unmodified) {
		return false, errPrecondition.WithField("If-Unmodified-Since")
	}
	current, err = c.read(etag(now))
	if since, dateErr := http.ParseTime(modifiedSince); dateErr == nil && c.IfNoneMatch == "" {
		current = !changed.After(since)
	}
	return current, err
}

// forGuest returns the conditions for the guest to check, nil for none.
func (c FileConditions) forGuest() (*file.Condition, error) {
	match, noneMatch, err := c.parse()
	if err != nil {
		return nil, err
	}
	out := file.Condition{Match: versionsOf(match, false), NoneMatch: versionsOf(noneMatch, true)}
	if unmodified, err := http.ParseTime(c.IfUnmodifiedSince); err == nil && !match.given {
		out.NotAfter = &unmodified
	}
	if out == (file.Condition{}) {
		return nil, nil
	}
	return &out, nil
}

// versionsOf returns the versions of a file that a list of tags names. Tags that no
// file has are left out.
func versionsOf(list entityTags, weak bool) *file.Versions {
	if !list.given {
		return nil
	}
	out := &file.Versions{Any: list.any}
	for _, tag := range list.tags {
		if weak {
			tag = strings.TrimPrefix(tag, "W/")
		}
		at, size, _ := strings.Cut(strings.Trim(tag, `"`), "-")
		nanos, atErr := strconv.ParseInt(at, 16, 64)
		bytes, sizeErr := strconv.ParseInt(size, 16, 64)
		if atErr == nil && sizeErr == nil {
			out.List = append(out.List, file.Version{ModifiedNanos: nanos, Size: bytes})
		}
	}
	return out
}
