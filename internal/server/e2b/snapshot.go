package e2b

import (
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// shownSnapshot is a snapshot, whose id can be given as a template.
type shownSnapshot struct {
	ID    string   `json:"snapshotID"`
	Names []string `json:"names"`
}

func showSnapshot(s snapshot.Snapshot) shownSnapshot {
	out := shownSnapshot{ID: s.ID, Names: []string{}}
	if s.Name != "" {
		out.Names = append(out.Names, s.Name)
	}
	return out
}

func (d *Door) takeSnapshot(c *call) error {
	body := struct {
		Name   string `json:"name"`
		Memory *bool  `json:"memory"`
	}{}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Memory != nil && !*body.Memory {
		return errNoOption("memory")
	}
	v, _, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return err
	}
	snap, err := d.cfg.VMs.Snapshot(c, c.scope(), v.ID, vm.SnapshotRequest{Name: body.Name})
	if err != nil {
		return gone(v.ID, err)
	}
	return c.answer(http.StatusCreated, showSnapshot(snap))
}

// listSnapshots returns snapshots of sandboxes, newest first.
func (d *Door) listSnapshots(c *call) error {
	query := c.r.URL.Query()
	f := snapshot.Filter{}
	if id := query.Get("sandboxID"); id != "" {
		if f.VMID = vmIDOf(id); f.VMID == "" {
			return c.answer(http.StatusOK, []shownSnapshot{})
		}
	}
	all, err := d.cfg.Snapshots.List(c, c.scope(), f)
	if err != nil {
		return err
	}
	found := []snapshot.Snapshot{}
	for _, s := range all {
		if s.Durable && s.VM.Sandbox != nil && namedAs(s, query) {
			found = append(found, s)
		}
	}
	page, err := pageOf(c, found, false, func(s snapshot.Snapshot) position { return position{s.CreatedAt, s.ID} })
	if err != nil {
		return err
	}
	out := make([]shownSnapshot, len(page))
	for i, s := range page {
		out[i] = showSnapshot(s)
	}
	return c.answer(http.StatusOK, out)
}

func namedAs(s snapshot.Snapshot, query url.Values) bool {
	name, _ := plainName(query.Get("name"), "")
	return name == "" || s.Name == name
}

// maxForks bounds the sandboxes of one fork.
const maxForks = 20

// forked is one entry of the answer to a fork: a sandbox, or why there is none.
type forked struct {
	Sandbox *sandbox `json:"sandbox,omitempty"`
	Error   *problem `json:"error,omitempty"`
}

func (d *Door) fork(c *call) error {
	body := struct {
		Timeout *int64 `json:"timeout"` // in seconds
		Count   *int   `json:"count"`
	}{}
	if err := c.decode(&body); err != nil {
		return err
	}
	ttl, err := timeout(body.Timeout, secondTimeout)
	if err != nil {
		return err
	}
	count := 1
	if body.Count != nil {
		count = *body.Count
	}
	if count < 1 || count > maxForks {
		return errs.InvalidField("count", "%d is out of range; 1 to %d can be given", count, maxForks)
	}
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return err
	}
	if s == paused {
		return errs.New(errs.Conflict, "sandbox_paused", "sandbox %s is paused", sandboxID(v.ID))
	}
	made, err := d.cfg.VMs.Fork(c, c.caller.OwnerID, v.ID, vm.CloneRequest{
		Count: count, Overrides: machine.Overrides{Expiry: &machine.Expiry{TTL: ttl, Action: v.Expiry.Action}},
	})
	if err != nil {
		return gone(v.ID, err)
	}
	out := make([]forked, 0, count)
	for _, v := range made.VMs {
		shown := d.shown(v, c.caller)
		out = append(out, forked{Sandbox: &shown})
	}
	for _, failure := range made.Failed {
		e := d.readable(c, failure)
		out = append(out, forked{Error: &problem{statusOf[e.Kind], e.Message}})
	}
	return c.answer(http.StatusCreated, out)
}

// deleteTemplate deletes a snapshot, which clients take for a template. Templates and
// images of Hatch's own are left to Hatch.
func (d *Door) deleteTemplate(c *call) error {
	name, err := plainName(c.params["id"], c.caller.UserName)
	if err != nil {
		return err
	}
	err = d.cfg.Snapshots.Delete(c, c.scope(), name)
	switch {
	case err == nil:
		return c.done()
	case !errs.Is(err, errs.NotFound):
		return err
	}
	if _, err := d.catalog.find(c, c.caller, name); err != nil {
		return err
	}
	return notImplemented("the deletion of templates other than snapshots")
}
