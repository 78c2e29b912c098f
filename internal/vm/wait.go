package vm

import (
	"context"
	"io"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// Wait returns the VM once the condition holds. When that is about a guest, and
// not about a state, one that sleeps is woken first.
//
// Errors: errs.NotFound when the VM is gone; errs.Conflict with code
// wait_hopeless when the condition cannot come true any more, such as running
// for a VM in state error; errs.Unavailable with code wait_timeout when ctx is
// done first; those of Wake.
func (s *Service) Wait(ctx context.Context, owner, id string, want WaitFor) (VM, error) {
	if err := want.HTTP.check(); err != nil {
		return VM{}, err
	}
	if want.State == "" {
		if v, err := s.roused(ctx, owner, id); ctx.Err() != nil {
			return VM{}, waitTimeout(v)
		} else if err != nil {
			return VM{}, err
		}
	}
	v, err := s.await(ctx, owner, id, want.met)
	if err != nil || !want.inside() {
		return v, err
	}
	if want.SSH && !v.EnableNetwork {
		return VM{}, errs.New(errs.Conflict, "wait_hopeless", "cannot wait for SSH of VM %s: it has no network", id).
			WithHint("wait for its agent, or for port:22")
	}
	return s.awaitAnswer(ctx, owner, v, want)
}

// await returns the VM once met says so. met returns an error when waiting is
// of no use any more.
func (s *Service) await(ctx context.Context, owner, id string, met func(VM) (bool, error)) (VM, error) {
	v, err := s.deps.Store.VM(ctx, owner, id)
	if ctx.Err() != nil {
		return VM{}, waitTimeout(v)
	}
	if err != nil {
		return VM{}, err // nobody announces a change of what is not there
	}
	for {
		changed := s.changes.next(id)
		now, err := s.deps.Store.VM(ctx, owner, id)
		if ctx.Err() != nil {
			return VM{}, waitTimeout(v)
		}
		if err != nil {
			return VM{}, err
		}
		v = now
		if ok, err := met(v); ok || err != nil {
			return v, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return VM{}, waitTimeout(v)
		}
	}
}

// waitTimeout tells how the VM was when it was last looked at, if it was.
func waitTimeout(v VM) *errs.Error {
	message := "the wait ended before its condition came true"
	if v.State != "" {
		message += "; the VM is " + string(v.State)
	}
	return errs.New(errs.Unavailable, "wait_timeout", "%s", message).
		WithHint("wait again, or look at the VM's conditions and console log")
}

// met reports whether v is what is waited for. For what is inside a guest it
// only says whether asking the guest makes sense.
func (w WaitFor) met(v VM) (bool, error) {
	if w.State != "" {
		if v.State == w.State {
			return true, nil
		}
		if w.State == Running {
			return false, hopeless(v)
		}
		return false, nil
	}
	if err := hopeless(v); err != nil {
		return false, err
	}
	ci := v.Conditions.CloudInit
	switch {
	case v.State != Running:
		return false, nil
	case w.Ready:
		return v.Conditions.Ready(), nil
	case w.Agent:
		return v.Conditions.Agent.Status == True, nil
	case w.CloudInit:
		if ci.Status == False && ci.Reason != "Running" {
			return false, errs.New(errs.Conflict, "cloud_init_not_done", "cloud-init of VM %s will not be done: %s", v.ID, ci.Message).
				WithHint("look at its console log")
		}
		return ci.Status == True, nil
	}
	return true, nil
}

// hopeless returns an error when v will not run unless somebody starts it.
func hopeless(v VM) error {
	if v.State == Failed || v.State == Stopped || v.Intent == WantDeleted {
		return errs.New(errs.Conflict, "wait_hopeless", "%s", strings.TrimSuffix("VM "+v.ID+" is "+string(v.State)+": "+v.StateReason, ": ")).
			WithHint("start it, or look at its console log")
	}
	return nil
}

// Log writes the VM's console log to w: its last tail lines (all when tail is
// negative) and, with follow, what comes until ctx is done.
func (s *Service) Log(ctx context.Context, owner, id string, tail int, follow bool, w io.Writer) error {
	if _, err := s.deps.Store.VM(ctx, owner, id); err != nil {
		return err
	}
	return s.deps.Consoles.Log(ctx, id, tail, follow, w)
}

// VMMLog writes what the VM's VMM printed since it was last started, as Log does.
func (s *Service) VMMLog(ctx context.Context, owner, id string, tail int, follow bool, w io.Writer) error {
	if _, err := s.deps.Store.VM(ctx, owner, id); err != nil {
		return err
	}
	return s.deps.Consoles.VMMLog(ctx, id, tail, follow, w)
}

// Console attaches the caller to the VM's serial console, and wakes one that
// sleeps.
// Errors: errs.Conflict when it is not running, or when somebody else writes;
// those of Wake.
func (s *Service) Console(ctx context.Context, owner, id string, readOnly bool) (io.ReadWriteCloser, error) {
	if _, err := s.awake(ctx, owner, id, "attach to the console of"); err != nil {
		return nil, err
	}
	return s.deps.Consoles.Attach(ctx, id, readOnly)
}

// Guest returns the session with the agent of a VM that runs, or that slept and
// is woken for this.
// Errors: errs.NotFound; errs.Conflict with code vm_not_running; those of Wake.
func (s *Service) Guest(ctx context.Context, owner, id string) (Guest, error) {
	return guestOf(s.awake(ctx, owner, id, "work inside"))
}

// AwakeGuest returns the session as Guest does, but lets a VM sleep.
// Errors: errs.NotFound; errs.Conflict with code vm_not_running.
func (s *Service) AwakeGuest(ctx context.Context, owner, id string) (Guest, error) {
	return guestOf(s.held(ctx, owner, id, "look inside"))
}

func guestOf(in *instance, err error) (Guest, error) {
	if err != nil {
		return nil, err
	}
	return in.guest, nil
}

// awake returns the machine of a VM as held does, and wakes one that sleeps.
func (s *Service) awake(ctx context.Context, owner, id, verb string) (*instance, error) {
	v, err := s.roused(ctx, owner, id)
	if err != nil {
		return nil, err
	}
	return s.holding(ctx, owner, v, verb)
}

// roused returns the owner's VM, woken if it slept. After an error of the wake
// it is the VM as it was before.
func (s *Service) roused(ctx context.Context, owner, id string) (VM, error) {
	v, err := s.deps.Store.VM(ctx, owner, id)
	if err != nil || v.Sleep == nil {
		return v, err
	}
	if err := s.rouse(ctx, id); err != nil {
		return v, err
	}
	return s.deps.Store.VM(ctx, owner, id)
}

// held returns the machine of a VM that runs, for what is no operation on it.
func (s *Service) held(ctx context.Context, owner, id, verb string) (*instance, error) {
	v, err := s.deps.Store.VM(ctx, owner, id)
	if err != nil {
		return nil, err
	}
	return s.holding(ctx, owner, v, verb)
}

// holding is held for a VM that was just read. A machine that this daemon does
// not hold yet is about to be adopted or connected: it is waited for, since one
// that is taken over ahead of that is held twice, or passed over by the adoption.
func (s *Service) holding(ctx context.Context, owner string, v VM, verb string) (*instance, error) {
	if in := s.instanceOf(v.ID); in != nil {
		return in, nil
	}
	if v.Machine == nil {
		return s.running(ctx, v, verb) // which says why not
	}
	unlock, err := s.turn(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if v, err = s.deps.Store.VM(ctx, owner, v.ID); err != nil { // as it is now
		return nil, err
	}
	return s.running(ctx, v, verb)
}
