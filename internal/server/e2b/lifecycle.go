package e2b

import (
	"context"
	"net/http"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

func (d *Door) get(c *call) error {
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, d.shownAlone(v, s, c.caller))
}

// kill deletes a sandbox, running or paused.
func (d *Door) kill(c *call) error {
	v, _, err := d.sandbox(c, c.scope(), c.params["id"])
	if err != nil {
		return err
	}
	if err := d.cfg.VMs.DeleteIf(c, c.scope(), v.ID, isSandbox); errs.Is(err, errs.NotFound) {
		return errNoSandbox(c.params["id"])
	} else if err != nil {
		return err
	}
	return c.done()
}

type timeoutBody struct {
	Timeout *int64 `json:"timeout"` // in seconds
}

// setTimeout begins the time of a running sandbox anew. For a paused one the answer is as
// if there were none: clients of one generation find out so that it is paused.
func (d *Door) setTimeout(c *call) error {
	body := timeoutBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Timeout == nil {
		return errs.InvalidField("timeout", "is missing; want a number of seconds")
	}
	left, err := timeout(body.Timeout, 0)
	if err != nil {
		return err
	}
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	if err == nil && s == paused {
		err = errNoSandbox(c.params["id"])
	}
	if err != nil {
		return err
	}
	if _, err := d.setEnd(c, c.scope(), v.ID, at(vm.Now().Add(left))); err != nil {
		return err
	}
	return c.done()
}

// maxRefresh bounds what one refresh adds.
const maxRefresh = 3600 // seconds

// refresh extends the time of a running sandbox, and never shortens it.
func (d *Door) refresh(c *call) error {
	body := struct {
		Duration *int64 `json:"duration"` // in seconds
	}{}
	if err := c.decode(&body); err != nil {
		return err
	}
	left := firstTimeout
	if body.Duration != nil {
		if *body.Duration < 0 || *body.Duration > maxRefresh {
			return errs.InvalidField("duration", "%d is out of range; 0 to %d seconds can be given", *body.Duration, maxRefresh)
		}
		left = time.Duration(*body.Duration) * time.Second
	}
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	if err == nil && s == paused {
		err = errNoSandbox(c.params["id"])
	}
	if err != nil {
		return err
	}
	if _, err := d.setEnd(c, c.scope(), v.ID, notBefore(vm.Now().Add(left))); err != nil {
		return err
	}
	return c.done()
}

// at returns what sets the end of a sandbox, and notBefore what moves an earlier one.
func at(end time.Time) func(time.Time) time.Time {
	return func(time.Time) time.Time { return end }
}

func notBefore(end time.Time) func(time.Time) time.Time {
	return func(before time.Time) time.Time {
		if before.After(end) {
			return before
		}
		return end
	}
}

// setEnd moves the end of a sandbox.
func (d *Door) setEnd(ctx context.Context, scope access.Scope, vmID string, move func(time.Time) time.Time) (vm.VM, error) {
	return d.cfg.VMs.Update(ctx, scope, vmID, func(v *vm.VM) error {
		v.Expiry.At = move(v.Expiry.At)
		return isSandbox(*v)
	})
}

type connectBody struct {
	Timeout   *int64 `json:"timeout"` // in seconds
	Memory    *bool  `json:"memory"`
	AutoPause *bool  `json:"autoPause"` // of resume
}

// connectFirst serves the route whose request has to say the time.
func (d *Door) connectFirst(c *call) error {
	body := connectBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Timeout == nil {
		return errs.InvalidField("timeout", "is missing; want a number of seconds")
	}
	return d.connect(c, body)
}

func (d *Door) connectSecond(c *call) error {
	body := connectBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	return d.connect(c, body)
}

// connect resumes a sandbox that is paused, and extends the time of one that is not.
func (d *Door) connect(c *call, body connectBody) error {
	v, s, left, err := d.toConnect(c, body)
	if err != nil {
		return err
	}
	if s == paused {
		return d.answerResumed(c, v, left)
	}
	if v, err = d.setEnd(c, c.scope(), v.ID, notBefore(vm.Now().Add(left))); err != nil {
		return err
	}
	return c.answer(http.StatusOK, d.shown(v, c.caller))
}

// resume is connect for clients that know that the sandbox is paused.
func (d *Door) resume(c *call) error {
	body := connectBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	v, s, left, err := d.toConnect(c, body)
	if err != nil {
		return err
	}
	if s == running {
		return errs.New(errs.Conflict, "sandbox_running", "sandbox %s is already running", sandboxID(v.ID))
	}
	if body.AutoPause != nil {
		action := machine.ActionDelete
		if *body.AutoPause {
			action = machine.ActionSleep
		}
		if v, err = d.cfg.VMs.Update(c, c.scope(), v.ID, func(v *vm.VM) error { v.Expiry.Action = action; return isSandbox(*v) }); err != nil {
			return err
		}
	}
	return d.answerResumed(c, v, left)
}

func (d *Door) toConnect(c *call, body connectBody) (v vm.VM, s state, left time.Duration, err error) {
	if body.Memory != nil && !*body.Memory {
		return v, s, 0, errNoOption("memory")
	}
	if left, err = timeout(body.Timeout, secondTimeout); err != nil {
		return v, s, 0, err
	}
	v, s, err = d.sandbox(c, c.scope(), c.params["id"])
	return v, s, left, err
}

func (d *Door) answerResumed(c *call, v vm.VM, left time.Duration) error {
	v, err := d.wake(c, c.scope(), v, left)
	if err != nil {
		return err
	}
	return c.answer(http.StatusCreated, d.shown(v, c.caller))
}

// wake continues a paused sandbox, whose time begins anew.
func (d *Door) wake(ctx context.Context, scope access.Scope, v vm.VM, left time.Duration) (vm.VM, error) {
	continues := d.cfg.VMs.Wake
	if v.State == vm.Paused {
		continues = d.cfg.VMs.Resume
	}
	if _, err := continues(ctx, scope, v.ID); err != nil {
		return vm.VM{}, gone(v.ID, err)
	}
	v, err := d.setEnd(ctx, scope, v.ID, at(vm.Now().Add(left)))
	return v, gone(v.ID, err)
}

// gone names a sandbox that was deleted meanwhile as clients do.
func gone(vmID string, err error) error {
	if errs.Is(err, errs.NotFound) {
		return errNoSandbox(sandboxID(vmID))
	}
	return err
}

// pause puts a sandbox to sleep. Its time stands still from before, so that it cannot end
// meanwhile.
func (d *Door) pause(c *call) error {
	body := struct {
		Memory         *bool `json:"memory"`
		RequireHealthy bool  `json:"requireHealthyGuest"`
	}{}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Memory != nil && !*body.Memory {
		return errNoOption("memory")
	}
	v, s, err := d.sandbox(c, c.scope(), c.params["id"])
	switch {
	case err != nil:
		return err
	case s == paused:
		return errs.New(errs.Conflict, "sandbox_paused", "sandbox %s is already paused", sandboxID(v.ID))
	case body.RequireHealthy && v.Conditions.Agent.Status != vm.True:
		return errs.New(errs.Conflict, "guest_unhealthy", "the agent of sandbox %s does not answer", sandboxID(v.ID))
	}
	defer d.time.hold(v.ID)()
	before := v.Expiry.At
	if _, err := d.setEnd(c, c.scope(), v.ID, at(time.Time{})); err != nil {
		return gone(v.ID, err)
	}
	if _, err := d.cfg.VMs.Sleep(c, c.scope(), v.ID); err != nil {
		_, undo := d.setEnd(context.WithoutCancel(c), c.scope(), v.ID, notBefore(before))
		if undo != nil {
			d.cfg.Log.Warn("cannot begin the time of a sandbox again that could not be paused", logkey.VM, v.ID, logkey.Error, undo)
		}
		return gone(v.ID, err)
	}
	return c.done()
}
