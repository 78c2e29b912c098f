package envd

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// selector names a process: by its pid in the guest, or by its tag.
type selector struct {
	PID *number `json:"pid"`
	Tag *string `json:"tag"`
}

// targets are processes by their pids, so that not each key that a user types needs a
// list of processes. An entry may be of a process that has ended: its id is not used
// again, so that a request for it fails, and the pid is looked up again.
type targets = boundedMap[targetKey, target]

type targetKey struct {
	vmID string
	pid  int
}

// target is what stays the same in a process.
type target struct {
	id  string
	tty bool
}

func targetOf(p process.Process) target { return target{id: p.ID, tty: p.Spec.TTY != nil} }

// find returns a process: one that runs, or else the one of these that began last.
func (e *Envd) find(ctx context.Context, c call, s selector) (process.Process, error) {
	if s.PID == nil && s.Tag == nil {
		return process.Process{}, connect.Errorf(connect.InvalidArgument, "process: must have a pid or a tag")
	}
	all, err := e.cfg.Processes.List(ctx, c.scope, c.VMID)
	if err != nil {
		return process.Process{}, err
	}
	var ended *process.Process
	for i, p := range all { // the newest first
		switch {
		case s.PID != nil && p.PID != int(*s.PID), s.PID == nil && p.Spec.Tag != *s.Tag:
		case p.State == process.Running:
			return p, nil
		case ended == nil:
			ended = &all[i]
		}
	}
	if ended == nil {
		return process.Process{}, s.notFound()
	}
	return *ended, nil
}

func (s selector) notFound() *connect.Error {
	if s.PID != nil {
		return connect.Errorf(connect.NotFound, "process with pid %d not found", *s.PID)
	}
	return connect.Errorf(connect.NotFound, "process with tag %q not found", errs.Brief(*s.Tag))
}

// with calls do with a process that runs.
func (e *Envd) with(ctx context.Context, c call, s selector, do func(target) error) error {
	if s.PID != nil {
		if known, ok := e.targets.get(targetKey{c.VMID, int(*s.PID)}); ok {
			if err := do(known); !hasEnded(err) {
				return err
			}
		}
	}
	p, err := e.find(ctx, c, s)
	if err != nil {
		return err
	}
	if p.State != process.Running {
		return s.notFound()
	}
	e.targets.put(targetKey{c.VMID, p.PID}, targetOf(p))
	err = do(targetOf(p))
	if errs.HasCode(err, "process_not_found") || errs.HasCode(err, "process_ended") {
		return s.notFound()
	}
	return err
}

// hasEnded reports whether an error may be that of a process that has ended.
func hasEnded(err error) bool {
	return errs.HasCode(err, "process_not_found") || errs.HasCode(err, "process_ended") || errs.HasCode(err, "stdin_closed")
}
