package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store in memory; the real ones are in internal/store.
type memory struct {
	mu      sync.Mutex
	events  []Event
	added   chan struct{}
	batches []int // removed by each call
}

func newMemory() *memory { return &memory{added: make(chan struct{})} }

func (m *memory) add(n int, vmID string, t Type) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := int64(0)
	if len(m.events) > 0 {
		last = m.events[len(m.events)-1].Seq
	}
	for range n {
		last++
		m.events = append(m.events, Event{Seq: last, VMID: vmID, Type: t, At: time.Now()})
	}
	close(m.added)
	m.added = make(chan struct{})
}

func (m *memory) LastEvent(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.events) == 0 {
		return 0, nil
	}
	return m.events[len(m.events)-1].Seq, nil
}

func (m *memory) OldestEvent(context.Context) (int64, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.events) == 0 {
		return 1, time.Now(), nil
	}
	return m.events[0].Seq, m.events[0].At, nil
}

func (m *memory) EventAdded() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.added
}

func (m *memory) Events(ctx context.Context, f Filter) ([]Event, int64, error) {
	last, _ := m.LastEvent(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []Event
	for _, e := range m.events {
		if e.Seq > f.After && (f.VMID == "" || e.VMID == f.VMID) && len(page) < f.Limit {
			page = append(page, e)
		}
	}
	if len(page) == f.Limit {
		last = page[len(page)-1].Seq
	}
	return page, last, ctx.Err()
}

func (m *memory) remove(most, batch int, counts func(Event) bool) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := 0
	for _, e := range m.events {
		if counts(e) {
			total++
		}
	}
	removed := 0
	var left []Event
	for _, e := range m.events {
		if counts(e) && total > most && removed < batch {
			total--
			removed++
			continue
		}
		left = append(left, e)
	}
	m.events = left
	if removed > 0 {
		m.batches = append(m.batches, removed)
	}
	return removed, nil
}

func always(Event) bool { return true }

func (m *memory) PruneOldEvents(_ context.Context, before time.Time, batch int) (int, error) {
	return m.remove(0, batch, func(e Event) bool { return e.At.Before(before) })
}

func (m *memory) PruneEventsOver(_ context.Context, most, batch int) (int, error) {
	return m.remove(most, batch, always)
}

func (m *memory) VMsWithEvents(ctx context.Context, after int64) ([]string, int64, error) {
	last, _ := m.LastEvent(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]bool{}
	var ids []string
	for _, e := range m.events {
		if e.Seq > after && !seen[e.VMID] {
			seen[e.VMID] = true
			ids = append(ids, e.VMID)
		}
	}
	return ids, last, nil
}

func (m *memory) PruneVMEvents(_ context.Context, vmID string, most, batch int) (int, error) {
	return m.remove(most, batch, func(e Event) bool { return e.VMID == vmID })
}

func (m *memory) PruneGuestEvents(_ context.Context, vmID string, most, batch int) (int, error) {
	return m.remove(most, batch, func(e Event) bool { return e.VMID == vmID && e.Type == VMConditionChanged })
}

var generous = Limits{Keep: time.Hour, PerVM: 1 << 20, Total: 1 << 20}

func newTestService(m *memory, l Limits) *Service {
	return New(m, l, slog.New(slog.DiscardHandler))
}

// TestFollow reads from a position in the log, in batches, and gets heartbeats while
// no events are added.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.add(5, "vm_a", VMOperation)
		s := newTestService(m, generous)
		ctx, leave := context.WithCancel(t.Context())
		var mu sync.Mutex
		var got []string
		ended := make(chan error, 1)
		go func() {
			ended <- s.Follow(ctx, Filter{After: 2, Limit: 2}, func(events []Event, through int64) error {
				var seqs []string
				for _, e := range events {
					seqs = append(seqs, fmt.Sprint(e.Seq))
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprintf("%s/%d", strings.Join(seqs, ","), through))
				return nil
			})
		}()
		requireGot := func(want string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if text := strings.Join(got, " "); text != want {
				t.Fatalf("got %q, want %q", text, want)
			}
		}
		requireGot("/2 3,4/4 5/5")
		m.add(1, "vm_a", VMOperation)
		requireGot("/2 3,4/4 5/5 6/6")
		time.Sleep(beat + time.Second) //nolint:forbidigo // the bubble's clock
		requireGot("/2 3,4/4 5/5 6/6 /6")
		leave()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestFollowFromNowSkipsEarlierEvents(t *testing.T) {
	m := newMemory()
	m.add(3, "vm_a", VMOperation)
	s := newTestService(m, generous)
	defer func() { _ = s.Close() }()
	calls, enough := 0, errors.New("enough")
	err := s.Follow(t.Context(), Filter{After: FromNow, Limit: 10}, func(events []Event, through int64) error {
		if calls++; calls == 1 {
			if through != 3 {
				t.Errorf("begins after %d", through)
			}
			m.add(1, "vm_a", VMOperation) // added between the first call of send and the first read
			return nil
		}
		if len(events) != 1 || events[0].Seq != 4 {
			t.Errorf("got %+v", events)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	err = s.Follow(t.Context(), Filter{After: 99, Limit: 10}, func([]Event, int64) error { return nil })
	if !errs.HasCode(err, "invalid_after") {
		t.Errorf("beyond the end: %v", err)
	}
}

type gapCase struct {
	f     Filter
	gap   bool
	first int64 // of the log's events
}

func (c gapCase) check(t *testing.T, got []Event) {
	t.Helper()
	if len(got) < 2 {
		t.Fatalf("got %v", got)
	}
	if gap := got[0].Type == LogGap; gap != c.gap || gap && (got[0].Seq != 10 || got[0].ID == "") {
		t.Errorf("begins with %+v", got[0])
	}
	if c.gap {
		got = got[1:]
	}
	if got[0].Seq != c.first || got[0].Type == LogGap {
		t.Errorf("continues with %+v, want %d", got[0], c.first)
	}
}

// TestGaps reads from positions before and after the oldest event that is kept, as
// pages and as a stream.
func TestGaps(t *testing.T) {
	m := newMemory()
	m.add(20, "vm_a", VMOperation)
	began := m.events[0].At
	for i := range m.events {
		m.events[i].At = began.Add(time.Duration(i+1) * time.Minute)
	}
	m.events = m.events[10:] // 11 is the oldest
	s := newService(m, Limits{}, slog.New(slog.DiscardHandler))
	for name, c := range map[string]gapCase{
		"everything that is kept":    {Filter{}, false, 11},
		"after a removed one":        {Filter{After: 5}, true, 11},
		"after the last removed one": {Filter{After: 10}, false, 11},
		"after one that is kept":     {Filter{After: 12}, false, 13},
		"since a removed one":        {Filter{Since: began.Add(3 * time.Minute)}, true, 11},
		"since the oldest":           {Filter{Since: began.Add(11 * time.Minute)}, false, 11},
		"both, since a kept one":     {Filter{After: 5, Since: began.Add(15 * time.Minute)}, false, 11},
		"of another type":            {Filter{After: 5, Types: []Pattern{"webhook.*"}}, true, 11},
	} {
		t.Run(name, func(t *testing.T) {
			for _, limit := range []int{1, 5, 100} {
				var page, rest []Event
				var err error
				f := c.f
				f.Limit = limit
				for next := int64(1); next != 0 && len(page) < 2; f.After = next {
					rest, next, err = s.Page(t.Context(), f)
					if page = append(page, rest...); err != nil || len(rest) > limit {
						t.Fatalf("%d events of %d, %v", len(rest), limit, err)
					}
				}
				c.check(t, page)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var got []Event
			f := c.f
			f.Limit = 100
			_ = s.Follow(ctx, f, func(events []Event, through int64) error {
				if got = append(got, events...); len(got) > 1 {
					cancel()
				}
				if len(events) > 0 && events[0].Type == LogGap && through != 10 {
					t.Errorf("the position after the gap is %d", through)
				}
				return nil
			})
			c.check(t, got)
		})
	}
}

func TestFollowersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestService(newMemory(), generous)
		ctx, leave := context.WithCancel(t.Context())
		follow := func() error {
			return s.Follow(ctx, Filter{Limit: 1}, func([]Event, int64) error { return nil })
		}
		for range maxFollowers {
			go func() { _ = follow() }()
		}
		synctest.Wait()
		if err := follow(); !errs.Is(err, errs.TooMany) {
			t.Errorf("a follower beyond the limit: %v", err)
		}
		leave()
		synctest.Wait()
		if err := follow(); !errors.Is(err, context.Canceled) {
			t.Errorf("after all have left: %v", err)
		}
		_ = s.Close()
	})
}

// TestPruning adds many events of a guest and of users: those of users stay.
func TestPruning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		m.add(40, "vm_a", VMOperation)
		m.add(2000, "vm_a", VMConditionChanged)
		m.add(30, "vm_b", VMOperation)
		s := newTestService(m, Limits{Keep: time.Hour, PerVM: 100, Total: 110})
		defer func() { _ = s.Close() }()
		left := func() map[string]int {
			m.mu.Lock()
			defer m.mu.Unlock()
			n := map[string]int{}
			for _, e := range m.events {
				n[e.VMID+" "+string(e.Type)]++
			}
			return n
		}
		time.Sleep(time.Second) //nolint:forbidigo // the bubble's clock; the first round takes pauses
		if n := left(); n["vm_a vm.operation"] != 30 || n["vm_a vm.condition_changed"] != 50 || n["vm_b vm.operation"] != 30 {
			t.Errorf("left: %v", n)
		}
		m.mu.Lock()
		for _, batch := range m.batches {
			if batch > pruneBatch {
				t.Errorf("%d were removed at once", batch)
			}
		}
		m.mu.Unlock()
		m.add(500, "vm_a", VMConditionChanged)
		time.Sleep(pruneEvery + time.Second) //nolint:forbidigo // the bubble's clock
		if n := left(); n["vm_a vm.condition_changed"] > 50 {
			t.Errorf("left after the next round: %v", n)
		}
		time.Sleep(2 * time.Hour) //nolint:forbidigo // the bubble's clock
		if n := left(); len(n) != 0 {
			t.Errorf("left after their time: %v", n)
		}
	})
}

func TestPatterns(t *testing.T) {
	for pattern, want := range map[Pattern]bool{"*": true, "vm.*": true, "vm.deleted": true, "vm.created": false, "webhook.*": false, "vm": false} {
		if got := pattern.Matches(VMDeleted); got != want {
			t.Errorf("%s: %v", pattern, got)
		}
	}
	if _, err := ParsePatterns("events", []string{"*", "vm.*", "vm.deleted"}); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{"", "vm", "v*", "vm.delet", "vm.*.x", "**", "disk.*", "vm.deleted*", strings.Repeat("x", 1000)} {
		_, err := ParsePatterns("events", []string{wrong})
		if !errs.HasCode(err, "invalid_events") || len(err.Error()) > 200 {
			t.Errorf("%.20q: %v", wrong, err)
		}
	}
	if _, err := ParsePatterns("events", make([]string, maxPatterns+1)); !errs.HasCode(err, "invalid_events") {
		t.Error(err)
	}
}

// FuzzPattern looks for a pattern that is accepted and matches nothing.
func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"*", "vm.*", "vm.deleted", ".*", "vm.*.*", "%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		patterns, err := ParsePatterns("events", []string{text})
		if err != nil {
			return
		}
		for _, a := range Types() {
			if patterns[0].Matches(a.Type) {
				return
			}
		}
		t.Fatalf("%q is accepted", text)
	})
}

func TestEveryTypeIsDescribed(t *testing.T) {
	for _, a := range Types() {
		if a.Doc == "" || a.Data == "" || !strings.Contains(Reference(), "`"+string(a.Type)+"`") {
			t.Errorf("%+v", a)
		}
	}
}

func TestEventsAreSmall(t *testing.T) {
	e := Of(VMOperation, strings.Repeat("ü", 5000), map[string]string{"x": strings.Repeat("y", maxData)})
	if len(e.Message) > maxMessage+len("…") || string(e.Data) != "{}" {
		t.Errorf("%d bytes of message, %d of data", len(e.Message), len(e.Data))
	}
	if e := Of(VMDeleted, "m", nil); string(e.Data) != "{}" {
		t.Errorf("%s", e.Data)
	}
}

func TestCauses(t *testing.T) {
	if c := CauseOf(t.Context()); c.Actor.Kind != Daemon {
		t.Errorf("without a cause it is %+v", c)
	}
	asked := Cause{Actor: Actor{Kind: Key, ID: "key_a"}, RequestID: "req_a"}
	ctx := context.WithoutCancel(WithCause(t.Context(), asked))
	if c := CauseOf(ctx); c != asked {
		t.Errorf("%+v", c)
	}
	if c := CauseOf(By(ctx, Guest)); c.Actor.Kind != Guest || c.RequestID != "" {
		t.Errorf("%+v", c)
	}
}
