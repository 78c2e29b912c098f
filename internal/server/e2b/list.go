package e2b

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const (
	pageOfVMs = 1000 // that are read at a time
	maxPage   = 100  // objects in an answer
	nextField = "X-Next-Token"
)

// filter is what a list is to have. Each parameter that a client gives is obeyed or
// refused: one that is ignored would return what the client does not mean.
type filter struct {
	states   []state // empty: all
	metadata map[string]string
	after    time.Time // of the start, inclusive
	template string    // id or name; "": any
	asc      bool
}

func filterOf(query url.Values) (f filter, err error) {
	if query.Has("state") {
		for text := range strings.SplitSeq(strings.Join(query["state"], ","), ",") {
			if s := state(text); s == running || s == paused {
				f.states = append(f.states, s)
			} else {
				return f, errs.InvalidField("state", "%q is not a state; want running or paused", errs.Brief(text))
			}
		}
	}
	if f.metadata, err = metadataOf(query.Get("metadata")); err != nil {
		return f, err
	}
	if text := query.Get("startedAfter"); text != "" {
		if f.after, err = time.Parse(time.RFC3339, text); err != nil {
			return f, errs.InvalidField("startedAfter", "%q is not a time in RFC 3339", errs.Brief(text))
		}
	}
	f.template = query.Get("template")
	switch order := query.Get("order"); order {
	case "", "desc":
	case "asc":
		f.asc = true
	default:
		return f, errs.InvalidField("order", "%q is not an order; want asc or desc", errs.Brief(order))
	}
	return f, nil
}

// metadataOf decodes a filter, which clients encode as a form of names and values that are
// encoded once more each.
func metadataOf(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	wrong := errs.InvalidField("metadata", "%q cannot be decoded; want NAME=VALUE, joined with &", errs.Brief(text))
	form, err := url.ParseQuery(text)
	if err != nil {
		return nil, wrong
	}
	out := map[string]string{}
	for name, values := range form {
		plain, err := url.QueryUnescape(name)
		if err != nil || len(values) != 1 {
			return nil, wrong
		}
		if out[plain], err = url.QueryUnescape(values[0]); err != nil {
			return nil, wrong
		}
	}
	return out, nil
}

func (f filter) includes(v vm.VM, s state) bool {
	return (len(f.states) == 0 || slices.Contains(f.states, s)) &&
		!v.CreatedAt.Before(f.after) &&
		(f.template == "" || v.Sandbox.Template == f.template || v.Sandbox.Alias == f.template) &&
		!slices.ContainsFunc(slices.Collect(maps.Keys(f.metadata)), func(name string) bool {
			value, ok := v.Sandbox.Metadata[name]
			return !ok || value != f.metadata[name]
		})
}

// listRunning serves clients that know no pages.
func (d *Door) listRunning(c *call) error {
	f, err := filterOf(c.r.URL.Query())
	if err != nil {
		return err
	}
	if len(f.states) == 0 {
		f.states = []state{running}
	}
	found, _, err := d.all(c, f)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, found)
}

func (d *Door) listPage(c *call) error {
	f, err := filterOf(c.r.URL.Query())
	if err != nil {
		return err
	}
	found, runningNow, err := d.all(c, f)
	if err != nil {
		return err
	}
	c.w.Header().Set("X-Total-Running", strconv.Itoa(runningNow))
	page, err := pageOf(c, found, f.asc, func(l listed) position { return position{l.StartedAt, l.SandboxID} })
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, page)
}

// all returns the caller's sandboxes in the order of the filter, and how many of all run.
func (d *Door) all(c *call, f filter) (found []listed, runningNow int, err error) {
	found = []listed{}
	for after := ""; ; {
		page, next, err := d.cfg.VMs.List(c, c.scope(), vm.Filter{HasLabels: []string{label}, Limit: pageOfVMs, After: after})
		if err != nil {
			return nil, 0, err
		}
		for _, v := range page {
			s, ok := stateOf(v)
			if !ok || expired(v, time.Now()) {
				continue
			}
			if s == running {
				runningNow++
			}
			if f.includes(v, s) {
				found = append(found, d.shownInList(v, s))
			}
		}
		if after = next; after == "" {
			break
		}
	}
	slices.SortFunc(found, func(a, b listed) int {
		order := position{a.StartedAt, a.SandboxID}.compare(position{b.StartedAt, b.SandboxID})
		if !f.asc {
			order = -order
		}
		return order
	})
	return found, runningNow, nil
}

// expired reports whether a sandbox is about to be deleted because its time is over.
func expired(v vm.VM, now time.Time) bool {
	return !v.Expiry.At.IsZero() && v.Expiry.At.Before(now) && v.Expiry.Action == machine.ActionDelete
}

// position is where an object is in a list.
type position struct {
	at time.Time
	id string
}

func (p position) compare(q position) int {
	if order := p.at.Compare(q.at); order != 0 {
		return order
	}
	return strings.Compare(p.id, q.id)
}

// token is what clients send to go on after a position.
func (p position) token() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(p.at.UnixMicro(), 10) + " " + p.id))
}

func positionOf(token string) (position, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(token)
	micros, id, ok := strings.Cut(string(text), " ")
	n, parseErr := strconv.ParseInt(micros, 10, 64)
	if err != nil || parseErr != nil || !ok {
		return position{}, errs.InvalidField("nextToken", "%q is not one that this server has given", errs.Brief(token))
	}
	return position{time.UnixMicro(n), id}, nil
}

// pageOf returns the page of a sorted list that a call asks for, and sets the header that
// leads to the next.
func pageOf[T any](c *call, all []T, asc bool, at func(T) position) ([]T, error) {
	query, limit := c.r.URL.Query(), maxPage
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return nil, errs.InvalidField("limit", "%q is out of range; 1 to %d can be given", errs.Brief(text), maxPage)
		}
		limit = n
	}
	if token := query.Get("nextToken"); token != "" {
		after, err := positionOf(token)
		if err != nil {
			return nil, err
		}
		first := slices.IndexFunc(all, func(one T) bool {
			order := at(one).compare(after)
			return asc && order > 0 || !asc && order < 0
		})
		if first < 0 {
			first = len(all)
		}
		all = all[first:]
	}
	if len(all) > limit {
		all = all[:limit]
		c.w.Header().Set(nextField, at(all[limit-1]).token())
	}
	return all, nil
}
