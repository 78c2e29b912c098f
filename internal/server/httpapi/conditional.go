package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/errs"
)

// Conditions are the headers that make a request depend on the current state of its
// object. It is exported for huma, which ignores unexported embedded structs.
type Conditions struct {
	IfMatch     string `header:"If-Match" doc:"ETags, or * for any; a request whose object has none of them is refused with 412."`
	IfNoneMatch string `header:"If-None-Match" doc:"ETags, or *. If the object has one of them, the status of a GET is 304, and any other request is refused with 412."`
}

// Resolve implements huma.Resolver: each of the headers may come in several lines,
// which together are one list.
func (c *Conditions) Resolve(hc huma.Context) []error {
	r, _ := humago.Unwrap(hc)
	c.IfMatch = strings.Join(r.Header.Values("If-Match"), ",")
	c.IfNoneMatch = strings.Join(r.Header.Values("If-None-Match"), ",")
	return nil
}

// refuseConditions refuses a DELETE that must only happen to a certain state of an object
// that has no entity tags: no tag can match.
func (d *door) refuseConditions(hc huma.Context, next func(huma.Context)) {
	op, wanted := hc.Operation(), hc.Header("If-Match")
	obeyed := slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.Name == "If-Match" })
	if op.Method != del || obeyed || wanted == "" || wanted == "*" {
		next(hc)
		return
	}
	r, w := humago.Unwrap(hc)
	d.writeProblem(w, r, errPrecondition.WithField("If-Match").WithHint("this kind of object has no ETag; leave If-Match out, or send *"))
}

// allow refuses a change of an object with this entity tag, "" for one without.
func (c Conditions) allow(tag string) error {
	match, noneMatch, err := c.parse()
	switch {
	case err != nil:
		return err
	case match.given && !match.strong(tag):
		return errPrecondition.WithField("If-Match")
	case noneMatch.given && noneMatch.weak(tag):
		return errPrecondition.WithField("If-None-Match")
	}
	return nil
}

// allowObject is allow for an object as answers show it; see tagOf.
func (c Conditions) allowObject(shown any, at time.Time) error {
	tag, err := tagOf(shown, at)
	if err != nil {
		return err
	}
	return c.allow(tag)
}

// read reports whether the client's copy of an object with this tag is current, or
// refuses the request. An If-None-Match that cannot be read matches nothing.
func (c Conditions) read(tag string) (current bool, err error) {
	match, noneMatch, err := c.parse()
	switch {
	case err != nil && !noneMatch.wrong:
		return false, err
	case match.given && !match.strong(tag):
		return false, errPrecondition.WithField("If-Match")
	}
	return noneMatch.given && noneMatch.weak(tag), nil
}

var errPrecondition = errs.New(errs.Unmet, "precondition_failed", "cannot do this: the object is not, or no longer, as the request's condition says").
	WithHint("read it again, with its ETag")

func (c Conditions) parse() (match, noneMatch entityTags, err error) {
	if match, err = parseEntityTags("If-Match", c.IfMatch); err == nil {
		noneMatch, err = parseEntityTags("If-None-Match", c.IfNoneMatch)
	}
	return match, noneMatch, err
}

// entityTags is the value of an If-Match or If-None-Match header.
type entityTags struct {
	given, wrong bool
	any          bool     // "*"
	tags         []string // as ETag has them, with quotes; weak ones begin with W/
}

// parseEntityTags parses a list of entity tags of RFC 9110, section 8.8.3, or "*".
func parseEntityTags(field, s string) (entityTags, error) {
	list := entityTags{given: strings.Trim(s, ", \t") != ""}
	if strings.TrimSpace(s) == "*" {
		list.any = true
		return list, nil
	}
	for rest := strings.TrimLeft(s, ", \t"); rest != ""; {
		tag, after, ok := cutEntityTag(rest)
		next := strings.TrimLeft(after, " \t")
		if !ok || next != "" && next[0] != ',' {
			return entityTags{wrong: true}, errs.InvalidField(field, `%q is not a list of ETags: want them in quotes, as the header ETag has them, such as "3f2a", or *`, errs.Brief(s)).
				WithCode("invalid_etag")
		}
		list.tags = append(list.tags, tag)
		rest = strings.TrimLeft(next, ", \t")
	}
	return list, nil
}

// cutEntityTag cuts the entity tag that s begins with.
func cutEntityTag(s string) (tag, rest string, ok bool) {
	opaque, _ := strings.CutPrefix(s, "W/")
	if !strings.HasPrefix(opaque, `"`) {
		return "", s, false
	}
	end := strings.IndexByte(opaque[1:], '"')
	if end < 0 || strings.ContainsFunc(opaque[1:end+1], func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", s, false
	}
	length := len(s) - len(opaque) + end + 2
	return s[:length], s[length:], true
}

// strong reports whether the list has this tag, by strong comparison. "" is the tag of
// an object without one.
func (l entityTags) strong(tag string) bool {
	return l.any || tag != "" && !strings.HasPrefix(tag, "W/") && slices.ContainsFunc(l.tags, func(t string) bool { return plainTag(t) == tag })
}

// weak is strong by weak comparison.
func (l entityTags) weak(tag string) bool {
	opaque := func(t string) string { return strings.TrimPrefix(plainTag(t), "W/") }
	return l.any || tag != "" && slices.ContainsFunc(l.tags, func(t string) bool { return opaque(t) == opaque(tag) })
}

// plainTag returns the tag of an answer without its content coding.
func plainTag(tag string) string {
	if plain, zipped := strings.CutSuffix(tag, gzipSuffix+`"`); zipped {
		return plain + `"`
	}
	return tag
}

// gzipSuffix ends the entity tags of answers that are sent compressed: their bytes
// are others.
const gzipSuffix = "-gzip"

// tagOf returns the entity tag of an object as answers show it. at is when it was last
// changed, also in what answers do not show.
func tagOf(shown any, at time.Time) (string, error) {
	text, err := json.Marshal(shown)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(at.UTC().AppendFormat(text, time.RFC3339Nano))
	const length = 12 // bytes
	return `"` + hex.EncodeToString(sum[:length]) + `"`, nil
}

// tagged is the output of routes about one object that has an ETag.
type tagged[T any] struct {
	Status int
	ETag   string `header:"ETag" doc:"Changes with the object; for If-Match and If-None-Match."`
	Body   T
}

// withTag returns the answer with an object, whose tag a condition was compared with.
func withTag[T any](c Conditions, shown T, at time.Time) (*tagged[T], error) {
	tag, err := tagOf(shown, at)
	if err != nil {
		return nil, err
	}
	current, err := c.read(tag)
	if err != nil {
		return nil, err
	}
	out := &tagged[T]{Status: http.StatusOK, ETag: tag, Body: shown}
	if current {
		out.Status = http.StatusNotModified
	}
	return out, nil
}
