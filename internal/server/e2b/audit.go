package e2b

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/audit"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// Audit records who did what. [audit.Service] implements it.
type Audit interface {
	// Add does not wait.
	Add(r audit.Record)
}

// limitRate bounds how often a key calls, apart for requests that read, change and create.
func (c *call) limitRate(rt route) error {
	class := admission.Writes
	switch {
	case rt.method == http.MethodGet:
		class = admission.Reads
	case strings.HasSuffix(rt.path, "/sandboxes"), strings.HasSuffix(rt.path, "/fork"), strings.HasSuffix(rt.path, "/snapshots"):
		class = admission.Creates
	}
	standing := c.door.rates.Count(cmp.Or(c.caller.KeyID, c.caller.OwnerID), class)
	if standing.Wait == 0 {
		return nil
	}
	return errs.New(errs.TooMany, "rate_limited", "the key sends too many requests of the class %q: %d at once and %g a second are allowed",
		class, standing.Limit.Burst, standing.Limit.PerSecond).WithRetryAfter(standing.Wait)
}

// record records a call for the control plane that changes something, once it has ended
// with err. Its operation is the route.
func (c *call) record(rt route, began time.Time, err error) {
	if rt.method == http.MethodGet {
		return
	}
	r := audit.By(c.caller, admission.AddressOf(c.r.RemoteAddr))
	r.Operation, r.Noun, r.Object, r.Took = rt.method+" "+rt.path, "vm", cmp.Or(c.made, vmIDOf(c.params["id"])), time.Since(began)
	r.Outcome, r.Code = outcomeOf(err)
	c.door.cfg.Audit.Add(r)
}

func outcomeOf(err error) (audit.Outcome, string) {
	if err == nil {
		return audit.OK, ""
	}
	e, ok := errs.As(err)
	switch {
	case !ok || e.Kind == errs.Internal:
		return audit.Failed, "internal"
	case statusOf[e.Kind] >= http.StatusInternalServerError && e.Kind != errs.Unsupported:
		return audit.Failed, e.Code
	}
	return audit.Refused, e.Code
}

// agentReads are calls of agents that neither change a guest nor show what is in files.
var agentReads = []string{"/health", "/envs", "/metrics", "/process.Process/List", "/filesystem.Filesystem/Stat", "/filesystem.Filesystem/ListDir", "/filesystem.Filesystem/GetWatcherEvents"}

// recordAgent records a call for an agent once it has ended with a status. Its caller has
// shown the sandbox's token, and is not known beside.
func (d *Door) recordAgent(r *http.Request, v vm.VM, began time.Time, status int) {
	if slices.Contains(agentReads, r.URL.Path) {
		return
	}
	record := audit.By(access.Principal{}, admission.AddressOf(r.RemoteAddr))
	record.OwnerID, record.Operation, record.Noun, record.Object = v.OwnerID, r.Method+" "+r.URL.Path, "vm", v.ID
	record.Outcome, record.Took = audit.OK, time.Since(began)
	switch {
	case status >= http.StatusInternalServerError:
		record.Outcome = audit.Failed
	case status >= http.StatusBadRequest:
		record.Outcome = audit.Refused
	}
	d.cfg.Audit.Add(record)
}
