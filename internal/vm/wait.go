package vm

import (
	"net/url"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// MaxWait is the longest wait that a request can ask for.
const MaxWait = 10 * time.Minute

// WaitFor is a condition to wait for. Exactly one field is set.
type WaitFor struct {
	State     State
	Ready     bool // see Conditions.Ready
	Agent     bool
	CloudInit bool // ended; an error of cloud-init ends the wait with errs.Conflict
	SSH       bool // an SSH banner on port 22
	Port      int  // a TCP port of the guest accepts
	HTTP      HTTPPage
}

// HTTPPage is a page of a server in a guest. To wait for it is to wait until a
// GET of it answers 2xx or 3xx.
type HTTPPage struct {
	Port int
	Path string // from its first slash, with the query
}

// Check refuses an invalid path. Errors: errs.Invalid with field for.
func (w WaitFor) Check() error {
	if w.HTTP.Port == 0 {
		return nil
	}
	if _, err := url.ParseRequestURI(w.HTTP.Path); err != nil {
		return errs.InvalidField("for", "%q is not a valid path", w.HTTP.Path)
	}
	return nil
}

// AsksGuest reports whether the condition is about a server in the guest, which
// must be probed: no event says when it begins to answer.
func (w WaitFor) AsksGuest() bool { return w.SSH || w.Port != 0 || w.HTTP.Port != 0 }

// Met reports whether v meets the condition. For a server in the guest it only
// says whether a probe makes sense. Errors: errs.Conflict with code
// wait_impossible or cloud_init_not_done.
func (w WaitFor) Met(v VM) (bool, error) {
	if w.State != "" {
		if v.State == w.State {
			return true, nil
		}
		if w.State == Running {
			return false, v.NeverRuns()
		}
		return false, nil
	}
	if err := v.NeverRuns(); err != nil {
		return false, err
	}
	ci := v.Conditions.CloudInit
	switch {
	case v.State != Running, v.Conditions.Agent.Reason == reasonGoingDown:
		return false, nil
	case w.Ready:
		return v.Conditions.Ready(), nil
	case w.Agent:
		return v.Conditions.Agent.Status == True, nil
	case w.CloudInit && v.Conditions.Agent.Status != True: // it may tell of an earlier boot
		return false, nil
	case w.CloudInit:
		if ci.Status == False && ci.Reason != "Running" {
			return false, errs.New(errs.Conflict, "cloud_init_not_done", "cloud-init of VM %s will not be done: %s", v.ID, ci.Message).
				WithHint("hatch logs --source cloud-init shows its log")
		}
		return ci.Status == True, nil
	}
	return true, nil
}

// NeverRuns returns an error when v will not run without a request to start it.
// Errors: errs.Conflict with code wait_impossible.
func (v VM) NeverRuns() error {
	stays := v.State == Stopped && v.Autostart == NoAutostart
	if v.State == Failed || stays || v.Intent == IntentDeleted {
		return errs.New(errs.Conflict, "wait_impossible", "%s", strings.TrimSuffix("VM "+v.ID+" is "+string(v.State)+": "+v.StateReason, ": ")).
			WithHint("start it, or look at its console log")
	}
	return nil
}

// IsDurable reports whether the memory of the sleeping VM is on disk. Errors:
// errs.Conflict with code vm_not_asleep.
func (v VM) IsDurable() (bool, error) {
	if !v.Asleep() {
		return false, errs.New(errs.Conflict, "vm_not_asleep", "cannot wait until the memory of VM %s is on disk: the VM is %s", v.ID, v.State)
	}
	return v.Sleep.Durable, nil
}

// WaitTimeout is the error of a wait whose time is up; v is the VM as last read,
// or zero.
func WaitTimeout(v VM) *errs.Error {
	message := "the wait timed out before its condition was met"
	if v.State != "" {
		message += "; the VM is " + string(v.State)
	}
	return errs.New(errs.TimedOut, "wait_timeout", "%s", message).
		WithHint("wait again, or look at the VM's conditions and console log")
}

// NoDriver is the error of a VM whose driver this host does not have.
func NoDriver(id, driver string) *errs.Error {
	return errs.New(errs.Unsupported, "vmm_unavailable", "VM %s runs on %s, which cannot be used on this host", id, driver).
		WithHint("hatch doctor says what it lacks")
}
