package warm

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// A snapshot that could not be cloned is not cloned for a while: for minRest after the
// first failure, for twice as long after the next. After maxRests it is at fault, and not
// the load of the host.
const (
	minRest  = time.Minute
	maxRests = 4
)

// rest is the time for which a shape's snapshot is not cloned.
type rest struct {
	failures    int // in a row
	from, until time.Time
	reason      string // of the last one
}

// Spoiled implements vm.WarmPool. Run removes a snapshot that is not to be tried again.
func (s *Service) Spoiled(ctx context.Context, snap snapshot.Snapshot, cause error) {
	s.log.Warn("a warm snapshot cannot be cloned", logkey.Snapshot, snap.ID, logkey.Image, snap.VM.ImageID, logkey.Error, cause)
	shape := vm.ShapeOf(snap)
	until, again := s.rest(shape, cause)
	switch {
	case !again:
		s.fail(ctx, shape, cause)
	case !until.IsZero():
		s.report(ctx, shape, "a VM could not be cloned from its warm snapshot", cause, until)
	}
}

// rest lets the snapshot of a shape rest, and returns for how long; zero if it rests
// already, because several clones failed at once. again is false if there is no use.
func (s *Service) rest(shape vm.Shape, cause error) (until time.Time, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, now := shape.Key(), time.Now()
	r := s.rests[key]
	switch {
	case now.Before(r.until):
		return time.Time{}, true
	case now.Sub(r.until) > r.until.Sub(r.from): // it has worked for as long as it rested
		r.failures = 0
	}
	r.failures++
	if r.failures > maxRests || errs.HasCode(cause, "snapshot_unusable") {
		delete(s.rests, key)
		return time.Time{}, false
	}
	if len(s.rests) >= maxFailed {
		maps.DeleteFunc(s.rests, func(_ string, r rest) bool { return !now.Before(r.until) })
	}
	r.from, r.until, r.reason = now, now.Add(minRest<<(r.failures-1)), errs.Public(cause)
	s.rests[key] = r
	return r.until, true
}

// resting returns the rest of a shape, if it is not over.
func (s *Service) resting(shape vm.Shape) (rest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rests[shape.Key()]
	return r, time.Now().Before(r.until)
}

// fail records that a shape cannot be built or cloned. It is built again after a while,
// for a VM that had to boot or, if only clients request builds, by retryFailed.
func (s *Service) fail(ctx context.Context, shape vm.Shape, cause error) {
	s.mu.Lock()
	if len(s.builds) >= len(s.queue)+maxFailed {
		maps.DeleteFunc(s.builds, func(_ string, e Entry) bool { return e.State == Failed })
	}
	at := time.Now().UTC()
	s.builds[shape.Key()] = Entry{Shape: shape, State: Failed, Reason: errs.Public(cause), At: at}
	s.mu.Unlock()
	s.report(ctx, shape, "a warm snapshot cannot be built or cloned", cause, at.Add(failureBackoff))
}

// report adds an event for the owner of the image.
func (s *Service) report(ctx context.Context, shape vm.Shape, what string, cause error, again time.Time) {
	ctx = event.By(context.WithoutCancel(ctx), event.Daemon) // not by the owner of a VM
	owner, err := s.images.ImageOwner(ctx, shape.ImageID)
	if err == nil {
		message := fmt.Sprintf("%s; VMs of image %s with %d CPUs and %d MiB boot until %s: %s", what, shape.ImageID, shape.VCPUs, shape.MemMiB, again.UTC().Format(time.TimeOnly), errs.Public(cause))
		e := event.Of(event.ImageWarmFailed, message, failureData{
			shape.ImageID, shape.VCPUs, shape.MemMiB, shape.DiskMiB, errs.Public(cause), again.UTC(),
		})
		e.OwnerID = owner
		err = s.images.AppendEvents(ctx, e)
	}
	if err != nil {
		s.log.Error("cannot store an event of the warm pool", logkey.Image, shape.ImageID, logkey.Error, err)
	}
}

// failureData is the data of the event, as internal/event describes it.
type failureData struct {
	ImageID string    `json:"image_id"`
	VCPUs   int       `json:"vcpu_count"`
	MemMiB  int       `json:"mem_mib"`
	DiskMiB int       `json:"disk_mib"`
	Error   string    `json:"error"`
	RetryAt time.Time `json:"retry_at"`
}

// retryFailed queues shapes again that failed a while ago, where no VM that had to boot
// does that, and forgets those that no VM would have any more.
func (s *Service) retryFailed(ctx context.Context, vms VMs) {
	if s.mode != Manual {
		return
	}
	var due []vm.Shape
	s.mu.Lock()
	for _, e := range s.builds {
		if e.State == Failed && time.Since(e.At) >= failureBackoff {
			due = append(due, e.Shape)
		}
	}
	s.mu.Unlock()
	for _, shape := range due {
		if vms.IsCurrent(ctx, shape) && s.enqueue(ctx, request{shape: shape}) == nil {
			continue
		}
		s.mu.Lock()
		delete(s.builds, shape.Key())
		s.mu.Unlock()
	}
}
