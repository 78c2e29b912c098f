package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/idempotency"
)

// MaxStartInput bounds the input of [Service.Start], in bytes: what a pipe holds,
// so that the write does not wait for the process.
const MaxStartInput = 64 << 10

// cleanUpTimeout bounds the removal of a process whose caller does not know its id.
const cleanUpTimeout = 10 * time.Second

// Service runs processes in guests. Calls that change something in a guest wake
// its VM; calls that describe, or attach to, existing processes do not.
type Service struct {
	guests   Guests
	requests Requests
}

// Requests keeps the keys of requests that start processes. [idempotency.Store] has it.
type Requests interface {
	Remember(ctx context.Context, id string) error
	Forget(ctx context.Context, id string) error
}

// New returns a service that works in guests.
func New(guests Guests, requests Requests) *Service {
	return &Service{guests: guests, requests: requests}
}

// once starts a process by start, whose request may have an Idempotency-Key. The key is
// stored first: if it is not known whether the process began, it does not begin again.
func (s *Service) once(ctx context.Context, spec *Spec, start func() error) error {
	if idempotency.Of(ctx).Key == "" {
		return start()
	}
	spec.ID = id.New(IDPrefix)
	if err := s.requests.Remember(ctx, spec.ID); err != nil {
		return err
	}
	err := start()
	if err != nil && !errs.Is(err, errs.Unavailable) {
		err = errors.Join(err, s.requests.Forget(context.WithoutCancel(ctx), spec.ID))
	}
	return err
}

// Open opens the VM's guest, then asks for the spec, starts a process and attaches
// to it. ctx bounds the opening only; the stream ends with Close.
func (s *Service) Open(ctx context.Context, scope access.Scope, vmID string, spec func() (Spec, error)) (Stream, error) {
	return s.open(ctx, scope, vmID, Wake, func(guest Guest) (Stream, error) {
		wanted, err := spec()
		if err != nil {
			return nil, err
		}
		if err := wanted.check(); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil { // the caller's key may have been revoked while it waited with the spec
			return nil, err
		}
		return guest.Exec(context.WithoutCancel(ctx), wanted)
	})
}

// Attach attaches to a process at offset from of its output. The stream ends with
// ctx. It wakes no VM: clients attach again by themselves when a connection
// breaks, and would keep the VM from sleeping.
func (s *Service) Attach(ctx context.Context, scope access.Scope, vmID, id string, from int64) (Stream, error) {
	if from < 0 {
		return nil, errs.InvalidField("from", "%d is not an offset; 0 is the beginning", from)
	}
	return s.open(ctx, scope, vmID, NoWake, func(guest Guest) (Stream, error) {
		if err := checkID(vmID, id); err != nil {
			return nil, err
		}
		return guest.Attach(ctx, id, from)
	})
}

// open opens a guest for as long as the stream that attach returns is open.
func (s *Service) open(ctx context.Context, scope access.Scope, vmID string, mode Mode, attach func(Guest) (Stream, error)) (stream Stream, err error) {
	guest, release, err := s.guests.Open(ctx, scope, vmID, mode)
	if err != nil {
		return nil, err
	}
	defer func() {
		if stream == nil {
			release()
		}
	}()
	attached, err := attach(guest)
	if err != nil {
		return nil, err
	}
	return &checkedStream{Stream: attached, release: sync.OnceFunc(release)}, nil
}

// checkedStream refuses invalid requests, and releases its guest when it is closed.
type checkedStream struct {
	Stream
	release func()
}

// Signal implements [Stream].
func (s *checkedStream) Signal(signal string) error {
	name, err := signalName(signal)
	if err != nil {
		return err
	}
	return s.Stream.Signal(name)
}

// Resize implements [Stream].
func (s *checkedStream) Resize(size Size) error {
	if err := size.check(); err != nil {
		return err
	}
	return s.Stream.Resize(size)
}

// Close implements [Stream].
func (s *checkedStream) Close() error {
	defer s.release()
	return s.Stream.Close()
}

// Start starts a process without attaching to it, and writes input to its stdin,
// which ends then unless spec.Stdin is set.
func (s *Service) Start(ctx context.Context, scope access.Scope, vmID string, spec Spec, input []byte) (Process, error) {
	if len(input) > MaxStartInput {
		return Process{}, errs.InvalidField("stdin", "is %d bytes; the limit for a process in the background is %d", len(input), MaxStartInput).
			WithHint("write more to it once it runs")
	}
	if err := spec.check(); err != nil {
		return Process{}, err
	}
	guest, release, err := s.guests.Open(ctx, scope, vmID, Wake)
	if err != nil {
		return Process{}, err
	}
	defer release()
	open := spec.Stdin
	spec.Stdin = open || len(input) > 0
	var p Process
	err = s.once(ctx, &spec, func() error {
		if p, err = guest.StartProcess(ctx, spec); err != nil || len(input) == 0 {
			return err
		}
		err := guest.WriteStdin(ctx, p.ID, input, !open)
		if err != nil && !errs.Is(err, errs.Conflict) { // a process that reads nothing may have ended
			remove(ctx, guest, p.ID)
			return err
		}
		return nil
	})
	if err != nil {
		return Process{}, err
	}
	return p, nil
}

// remove removes a process whose id the caller never gets, even if ctx is done. It
// ignores errors: in a guest that does not answer the process stays.
func remove(ctx context.Context, guest Guest, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	_ = guest.RemoveProcess(ctx, id)
}

// List returns the processes of the VM, the newest first.
func (s *Service) List(ctx context.Context, scope access.Scope, vmID string) ([]Process, error) {
	guest, release, err := s.guests.Open(ctx, scope, vmID, NoWake)
	if err != nil {
		return nil, err
	}
	defer release()
	return guest.Processes(ctx)
}

// Get returns a process. Errors: errs.NotFound with code process_not_found.
func (s *Service) Get(ctx context.Context, scope access.Scope, vmID, id string) (p Process, err error) {
	err = s.with(ctx, scope, vmID, id, NoWake, func(guest Guest) error {
		p, err = guest.Process(ctx, id)
		return err
	})
	return p, err
}

// Remove kills a process and its group, if it runs, and forgets it.
func (s *Service) Remove(ctx context.Context, scope access.Scope, vmID, id string) error {
	return s.with(ctx, scope, vmID, id, Wake, func(guest Guest) error { return guest.RemoveProcess(ctx, id) })
}

// Signal sends a signal, by name or number, to a process's group.
func (s *Service) Signal(ctx context.Context, scope access.Scope, vmID, id, signal string) error {
	name, err := signalName(signal)
	if err != nil {
		return err
	}
	return s.with(ctx, scope, vmID, id, Wake, func(guest Guest) error { return guest.SignalProcess(ctx, id, name) })
}

// WriteStdin writes to a process's stdin, and closes it with end.
func (s *Service) WriteStdin(ctx context.Context, scope access.Scope, vmID, id string, data []byte, end bool) error {
	return s.with(ctx, scope, vmID, id, Wake, func(guest Guest) error { return guest.WriteStdin(ctx, id, data, end) })
}

// Resize changes the size of a process's terminal.
func (s *Service) Resize(ctx context.Context, scope access.Scope, vmID, id string, size Size) error {
	if err := size.check(); err != nil {
		return err
	}
	return s.with(ctx, scope, vmID, id, Wake, func(guest Guest) error { return guest.ResizeProcess(ctx, id, size) })
}

// with calls do with the guest of a process, which is in use meanwhile.
func (s *Service) with(ctx context.Context, scope access.Scope, vmID, id string, mode Mode, do func(Guest) error) error {
	guest, release, err := s.guests.Open(ctx, scope, vmID, mode)
	if err != nil {
		return err
	}
	defer release()
	if err := checkID(vmID, id); err != nil {
		return err
	}
	return do(guest)
}

var idForm = regexp.MustCompile(`^exec_[a-z0-9]{1,32}$`)

func checkID(vmID, id string) error {
	if !idForm.MatchString(id) {
		return errs.New(errs.NotFound, "process_not_found", "there is no process %q in VM %s", errs.Brief(id), vmID)
	}
	return nil
}

// Log writes a process's output so far to w, stdout and stderr as they came and,
// with follow, what comes until it ends. began is called before the first write,
// once the process is known to exist.
func (s *Service) Log(ctx context.Context, scope access.Scope, vmID, id string, follow bool, began func(), w io.Writer) error {
	stream, err := s.Attach(ctx, scope, vmID, id, 0)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	began()
	end := stream.Process().Output
	for at := int64(0); follow || at < end; {
		chunk, err := stream.Next()
		switch {
		case err != nil:
			return err
		case chunk.Exit != nil:
			return nil
		case chunk.Lost > 0:
			_, err = fmt.Fprintf(w, "[%d bytes of output are not kept any more]\n", chunk.Lost)
		default:
			_, err = w.Write(chunk.Data)
		}
		if err != nil {
			return err
		}
		at = chunk.Offset
	}
	return nil
}
