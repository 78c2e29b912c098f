package httpapi

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// PageInput selects a page of a list. It is exported for huma, which ignores
// unexported embedded structs.
type PageInput struct {
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"1000" doc:"Objects on a page."`
	After string `query:"after" maxLength:"256" doc:"Only objects after this one in the list; the Link header has it."`
}

// paged is the output of lists in pages.
type paged[T any] struct {
	Link string `header:"Link" doc:"The next page, rel=\"next\"; absent on the last."`
	Body []T    `nullable:"false"`
}

// position is where an object stands in a list, which is newest first. It refers to no
// object, so it stays valid when that one is deleted.
type position struct {
	at time.Time
	id string
}

func (p position) compare(q position) int {
	return cmp.Or(q.at.Compare(p.at), strings.Compare(q.id, p.id))
}

// String returns the position as a cursor.
func (p position) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%s", p.at.UnixNano(), p.id))
}

// parsePosition parses a cursor.
func parsePosition(cursor string) (position, error) {
	text, err := base64.RawURLEncoding.DecodeString(cursor)
	nanos, id, _ := strings.Cut(string(text), ".")
	at, atErr := strconv.ParseInt(nanos, 10, 64)
	if err != nil || atErr != nil || id == "" {
		return position{}, errs.InvalidField("after", "is not a valid cursor").
			WithHint("follow the Link header of the previous page, or leave after out")
	}
	return position{time.Unix(0, at), id}, nil
}

// list is all objects of a kind, to be shown in pages.
type list[T, S any] struct {
	all   []T
	at    func(T) position
	show  func(T) S
	path  string     // of the list
	query url.Values // of the list, without the page; nil for none
}

// page returns the page that the request asks for. Only lists that are short as a
// whole are made so; the others are read page by page.
func (l list[T, S]) page(in PageInput) (*paged[S], error) {
	all := slices.SortedStableFunc(slices.Values(l.all), func(a, b T) int { return l.at(a).compare(l.at(b)) })
	if in.After != "" {
		after, err := parsePosition(in.After)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(o T) bool { return after.compare(l.at(o)) >= 0 })
	}
	out := &paged[S]{}
	if len(all) > in.Limit {
		all = all[:in.Limit]
		q := url.Values{"limit": {strconv.Itoa(in.Limit)}, "after": {l.at(all[in.Limit-1]).String()}}
		maps.Copy(q, l.query)
		out.Link = "<" + l.path + "?" + q.Encode() + `>; rel="next"`
	}
	out.Body = make([]S, len(all))
	for i, o := range all {
		out.Body[i] = l.show(o)
	}
	return out, nil
}
