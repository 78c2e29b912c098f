package httpapi

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// TestPages follows the links of a list, of which some entries were made at the same
// time, and of which one is deleted meanwhile.
func TestPages(t *testing.T) {
	base := time.Date(2026, 3, 6, 12, 0, 0, 0, time.UTC)
	at := map[string]time.Time{"a": base, "b": base, "c": base.Add(1), "d": base.Add(time.Hour), "e": base}
	of := list[string, string]{
		all: []string{"a", "b", "c", "d", "e"}, show: strings.ToUpper, path: "/things", query: url.Values{"x": {"y z"}},
		at: func(id string) position { return position{at[id], id} },
	}
	var seen []string
	for in := (PageInput{Limit: 2}); ; {
		page, err := of.page(in)
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, page.Body...)
		if page.Link == "" {
			break
		}
		target, rel, _ := strings.Cut(strings.TrimPrefix(page.Link, "<"), ">")
		u, err := url.Parse(target)
		if err != nil || rel != `; rel="next"` || u.Path != "/things" || u.Query().Get("limit") != "2" || u.Query().Get("x") != "y z" {
			t.Fatalf("the link is %s, %v", page.Link, err)
		}
		in.After = u.Query().Get("after")
		of.all = slices.DeleteFunc(of.all, func(id string) bool { return id == "c" }) // the cursor's own
	}
	if got := strings.Join(seen, ""); got != "DCEBA" {
		t.Errorf("the pages have %s", got)
	}
	if page, err := of.page(PageInput{Limit: 5}); err != nil || page.Link != "" || len(page.Body) != 4 {
		t.Errorf("%+v, %v", page, err)
	}
	of.all = nil
	if page, err := of.page(PageInput{Limit: 1}); err != nil || page.Body == nil {
		t.Errorf("an empty list: %+v, %v", page, err)
	}
	for _, bad := range []string{"x", "!", "MTIz", "eC5hYg"} {
		if _, err := of.page(PageInput{Limit: 1, After: bad}); !errs.HasCode(err, "invalid_after") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
