package operation

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/vm"
)

// audited is the data of the event about an operation.
type audited struct {
	Operation  string `json:"operation"`
	Outcome    string `json:"outcome"` // succeeded or failed
	DurationMS int64  `json:"duration_ms"`
	Error      string `json:"error,omitempty"`
	Code       string `json:"code,omitempty"`
}

// Record runs fn and appends an event that says how it ended. Precondition: the
// VM's lock is held.
func (r *Runner) Record(ctx context.Context, v vm.VM, name string, fn Func) (vm.VM, error) {
	began := time.Now()
	after, err := fn(ctx, v)
	r.audit(ctx, v, name, began, err)
	return after, err
}

func (r *Runner) audit(ctx context.Context, v vm.VM, name string, began time.Time, err error) {
	took := time.Since(began)
	data := audited{Operation: name, Outcome: "succeeded", DurationMS: took.Milliseconds()}
	message := fmt.Sprintf("%s took %s", name, took.Round(time.Millisecond))
	if err != nil {
		data.Outcome, data.Error = "failed", event.Brief(errs.Public(err))
		message = fmt.Sprintf("%s failed after %s: %s", name, took.Round(time.Millisecond), data.Error)
		if e, ok := errs.As(err); ok {
			data.Code = e.Code
		}
	}
	e := v.About(event.Of(event.VMOperation, message, data))
	store := func() error { return r.store.AppendEvents(context.WithoutCancel(ctx), e) }
	failed := store()
	if errs.HasCode(failed, errs.DatabaseUnavailable) { // the caller need not wait for it
		r.Go(func() { r.logUnstored(v, e, r.Insist(context.WithoutCancel(ctx), store)) })
		return
	}
	r.logUnstored(v, e, failed)
}
