package process

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// MaxStartInput bounds what [Service.Start] writes to stdin, in bytes: what a
// pipe holds, so that it does not wait for the process to read.
const MaxStartInput = 64 << 10

// cleanUpTimeout bounds how long a process is ended of which its caller knows
// nothing any more.
const cleanUpTimeout = 10 * time.Second

// Service is what can be done with processes in guests. Whatever changes
// something in a guest wakes one that sleeps; what looks at, or joins, processes
// that were started before does not.
type Service struct {
	guests Guests
}

// New returns a service that works in guests.
func New(guests Guests) *Service { return &Service{guests: guests} }

// Reach reports whether a process could be started in the VM now. It wakes one
// that sleeps.
// Errors: those of [Guests].
func (s *Service) Reach(ctx context.Context, owner, vmID string) error {
	_, err := s.guests.ProcessGuest(ctx, owner, vmID)
	return err
}

// Open starts a process and attaches to it. It goes on when the stream, which
// ends with ctx, is closed.
func (s *Service) Open(ctx context.Context, owner, vmID string, spec Spec) (Stream, error) {
	guest, err := s.guestFor(ctx, owner, vmID, spec)
	if err != nil {
		return nil, err
	}
	return checked(guest.Exec(ctx, spec))
}

// checkedStream refuses what no process can be told.
type checkedStream struct{ Stream }

func checked(stream Stream, err error) (Stream, error) {
	if err != nil {
		return nil, err
	}
	return checkedStream{stream}, nil
}

// Signal implements [Stream].
func (s checkedStream) Signal(signal string) error {
	name, err := signalName(signal)
	if err != nil {
		return err
	}
	return s.Stream.Signal(name)
}

// Resize implements [Stream].
func (s checkedStream) Resize(size Size) error {
	if err := size.check(); err != nil {
		return err
	}
	return s.Stream.Resize(size)
}

// Start starts a process that nobody is attached to, and gives input to it. Its
// stdin ends then, unless spec.Stdin is set.
func (s *Service) Start(ctx context.Context, owner, vmID string, spec Spec, input []byte) (Process, error) {
	if len(input) > MaxStartInput {
		return Process{}, errs.InvalidField("stdin", "up to %d bytes can be given to a process in the background, not %d", MaxStartInput, len(input)).
			WithHint("write more to it once it runs")
	}
	guest, err := s.guestFor(ctx, owner, vmID, spec)
	if err != nil {
		return Process{}, err
	}
	open := spec.Stdin
	spec.Stdin = open || len(input) > 0
	p, err := guest.StartProcess(ctx, spec)
	if err != nil || len(input) == 0 {
		return p, err
	}
	err = guest.WriteStdin(ctx, p.ID, input, !open)
	if err != nil && !errs.Is(err, errs.Conflict) { // one that reads nothing may end at once
		remove(ctx, guest, p.ID)
		return Process{}, err
	}
	return p, nil
}

// guestFor returns the guest in which spec, once it is checked, shall run.
func (s *Service) guestFor(ctx context.Context, owner, vmID string, spec Spec) (Guest, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	return s.guests.ProcessGuest(ctx, owner, vmID)
}

// remove ends a process that nobody will ask for, whatever became of ctx. A
// guest that does not answer keeps it: there is nobody to tell.
func remove(ctx context.Context, guest Guest, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	_ = guest.RemoveProcess(ctx, id)
}

// List returns the processes that were started in the VM, the newest first.
func (s *Service) List(ctx context.Context, owner, vmID string) ([]Process, error) {
	guest, err := s.guests.AwakeProcessGuest(ctx, owner, vmID)
	if err != nil {
		return nil, err
	}
	return guest.Processes(ctx)
}

// Get returns one process. Errors: errs.NotFound with code process_not_found.
func (s *Service) Get(ctx context.Context, owner, vmID, id string) (Process, error) {
	guest, err := s.awakeGuestOf(ctx, owner, vmID, id)
	if err != nil {
		return Process{}, err
	}
	return guest.Process(ctx, id)
}

// Remove kills a process and its group, if it lives, and forgets it.
func (s *Service) Remove(ctx context.Context, owner, vmID, id string) error {
	guest, err := s.guestOf(ctx, owner, vmID, id)
	if err != nil {
		return err
	}
	return guest.RemoveProcess(ctx, id)
}

// Signal sends a signal, by name or number, to a process's group.
func (s *Service) Signal(ctx context.Context, owner, vmID, id, signal string) error {
	name, err := signalName(signal)
	if err != nil {
		return err
	}
	guest, err := s.guestOf(ctx, owner, vmID, id)
	if err != nil {
		return err
	}
	return guest.SignalProcess(ctx, id, name)
}

// WriteStdin writes to a process's stdin, and ends it with end.
func (s *Service) WriteStdin(ctx context.Context, owner, vmID, id string, data []byte, end bool) error {
	guest, err := s.guestOf(ctx, owner, vmID, id)
	if err != nil {
		return err
	}
	return guest.WriteStdin(ctx, id, data, end)
}

// Resize changes the size of a process's terminal.
func (s *Service) Resize(ctx context.Context, owner, vmID, id string, size Size) error {
	if err := size.check(); err != nil {
		return err
	}
	guest, err := s.guestOf(ctx, owner, vmID, id)
	if err != nil {
		return err
	}
	return guest.ResizeProcess(ctx, id, size)
}

// Attach joins a process's output at offset from. The stream ends with ctx. It
// wakes no VM: clients attach again by themselves when a connection breaks, and
// a VM that they hold open could never sleep.
func (s *Service) Attach(ctx context.Context, owner, vmID, id string, from int64) (Stream, error) {
	if from < 0 {
		return nil, errs.InvalidField("from", "%d is not an offset; 0 is the beginning", from)
	}
	guest, err := s.awakeGuestOf(ctx, owner, vmID, id)
	if err != nil {
		return nil, err
	}
	return checked(guest.Attach(ctx, id, from))
}

// Log writes a process's output so far to w, stdout and stderr as they came
// and, with follow, what comes until it ends.
func (s *Service) Log(ctx context.Context, owner, vmID, id string, follow bool, w io.Writer) error {
	stream, err := s.Attach(ctx, owner, vmID, id, 0)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	upTo := stream.Process().Output
	for at := int64(0); follow || at < upTo; {
		chunk, err := stream.Next()
		if err != nil {
			return err
		}
		if chunk.Exit != nil {
			return nil
		}
		if err := writeLog(w, chunk); err != nil {
			return err
		}
		at = chunk.Offset
	}
	return nil
}

func writeLog(w io.Writer, c Chunk) error {
	if c.Lost > 0 {
		_, err := fmt.Fprintf(w, "[%d bytes of output are not kept any more]\n", c.Lost)
		return err
	}
	_, err := w.Write(c.Data)
	return err
}

var idForm = regexp.MustCompile(`^exec_[a-z0-9]{1,32}$`)

// guestOf returns the guest that may have the process, woken if it sleeps.
func (s *Service) guestOf(ctx context.Context, owner, vmID, id string) (Guest, error) {
	return guestWith(ctx, s.guests.ProcessGuest, owner, vmID, id)
}

// awakeGuestOf returns the guest that may have the process, unless it sleeps.
func (s *Service) awakeGuestOf(ctx context.Context, owner, vmID, id string) (Guest, error) {
	return guestWith(ctx, s.guests.AwakeProcessGuest, owner, vmID, id)
}

// findGuest is one of the ways to a guest that Guests has.
type findGuest func(ctx context.Context, owner, vmID string) (Guest, error)

func guestWith(ctx context.Context, find findGuest, owner, vmID, id string) (Guest, error) {
	guest, err := find(ctx, owner, vmID)
	if err != nil {
		return nil, err
	}
	if !idForm.MatchString(id) {
		return nil, errs.New(errs.NotFound, "process_not_found", "there is no process %q in VM %s", errs.Brief(id), vmID)
	}
	return guest, nil
}
