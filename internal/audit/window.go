package audit

import "time"

// Bounds on records of clients without a key, within one window.
const (
	window     = time.Minute
	maxAlike   = 20   // of one operation, address and object
	maxSingles = 600  // of all
	maxGroups  = 1024 // of one operation, address and object each
)

// group is what records have in common that become one.
type group struct {
	operation, address, noun, object string
	outcome                          Outcome
	code                             string
}

// windows counts the records of the current window.
type windows struct {
	singles int
	groups  map[group]*more
}

// more are the records of a group, and those of them that were left out.
type more struct {
	count int
	last  Record // with the sum of all that were left out
}

func newWindows() windows { return windows{groups: map[group]*more{}} }

// admit reports whether a record is to be added as it is. Else it is counted.
func (w *windows) admit(r Record) bool {
	g := group{r.Operation, r.Address, r.Noun, r.Object, r.Outcome, r.Code}
	m := w.groups[g]
	if m == nil && len(w.groups) >= maxGroups { // too many to tell apart
		g.address, g.noun, g.object = "", "", ""
		r.Address, r.Noun, r.Object = "", "", ""
		m = w.groups[g]
	}
	if m == nil {
		m = &more{}
		w.groups[g] = m
	}
	m.count++
	if m.count <= maxAlike && w.singles < maxSingles {
		w.singles++
		return true
	}
	r.Count, r.Bytes, r.Took = m.last.Count+1, m.last.Bytes+r.Bytes, m.last.Took+r.Took
	m.last = r
	return false
}

// end returns one record for those of each group that were left out, and begins the next
// window.
func (w *windows) end() (all []Record) {
	for _, m := range w.groups {
		if m.last.Count > 0 {
			all = append(all, m.last)
		}
	}
	*w = newWindows()
	return all
}
