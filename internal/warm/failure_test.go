package warm

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
)

// later makes the rest of a shape, and its failure, older.
func (w *world) later(key string, by time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r, ok := w.rests[key]; ok {
		r.from, r.until = r.from.Add(-by), r.until.Add(-by)
		w.rests[key] = r
	}
	if e, ok := w.builds[key]; ok {
		e.At = e.At.Add(-by)
		w.builds[key] = e
	}
}

// events returns the data of the pool's events.
func (w *world) events(t *testing.T) (all []failureData) {
	t.Helper()
	page, _, err := w.store.Events(t.Context(), event.Filter{Scope: access.Owner(access.AdminID), Types: []event.Pattern{"image.*"}, Limit: event.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page {
		var data failureData
		if err := json.Unmarshal(e.Data, &data); err != nil || e.Actor.Kind != event.Daemon {
			t.Errorf("there is %+v, %v", e, err)
		}
		all = append(all, data)
	}
	return all
}

// TestSlowCloneDoesNotEndThePool fails clones, as on a host under load: the snapshot
// rests, each time for longer, and is cloned again.
func TestSlowCloneDoesNotEndThePool(t *testing.T) {
	w := newWorld(t, Auto)
	s, slow := shape(64), errs.New(errs.Unavailable, "copy_not_confirmed", "it has not said so")
	w.Missed(t.Context(), s)
	w.buildAll(t)
	id := w.requireStates(t, Ready)[0].SnapshotID
	wait := minRest
	for range maxRests {
		warm, ok := w.Find(t.Context(), s, ample)
		if !ok {
			t.Fatal("it is not found again")
		}
		w.Spoiled(t.Context(), warm.Snapshot, slow)
		w.Spoiled(t.Context(), warm.Snapshot, slow) // at the same time
		warm.Release()
		w.requireFind(t, s, false)
		if e := w.requireStates(t, Failed)[0]; e.SnapshotID != id || !strings.Contains(e.Reason, "it has not said so") {
			t.Errorf("it rests as %+v", e)
		}
		w.Missed(t.Context(), s)
		w.removeStale(t.Context(), w.vms)
		w.later(s.Key(), wait-time.Second)
		w.requireFind(t, s, false)
		w.later(s.Key(), time.Second)
		w.requireFind(t, s, true)
		w.requireStates(t, Ready)
		wait *= 2
	}
	got := w.events(t)
	if len(got) != maxRests || got[0].Error != "it has not said so" || got[0].MemMiB != 64 || got[0].RetryAt.IsZero() {
		t.Errorf("the events are %+v", got)
	}
	warm, _ := w.Find(t.Context(), s, ample)
	w.Spoiled(t.Context(), warm.Snapshot, slow)
	warm.Release()
	w.removeStale(t.Context(), w.vms)
	if e := w.requireStates(t, Failed)[0]; e.SnapshotID != "" {
		t.Errorf("after %d failures in a row there is %+v", maxRests+1, e)
	}
}

func TestFailuresLongAgoDoNotCount(t *testing.T) {
	w := newWorld(t, Auto)
	s, slow := shape(64), errs.New(errs.Unavailable, "copy_not_confirmed", "it has not said so")
	w.Missed(t.Context(), s)
	w.buildAll(t)
	for range 2 * maxRests {
		warm, ok := w.Find(t.Context(), s, ample)
		if !ok {
			t.Fatal("it is not found again")
		}
		w.Spoiled(t.Context(), warm.Snapshot, slow)
		warm.Release()
		w.later(s.Key(), 3*minRest)
	}
	w.requireFind(t, s, true)
}

// TestFailedBuildIsRetried: where only clients request builds, no VM causes another try.
func TestFailedBuildIsRetried(t *testing.T) {
	w := newWorld(t, Manual)
	w.vms.unready = errs.New(errs.Unavailable, "wait_timeout", "its kernel has panicked")
	if err := w.Keep(t.Context(), shape(64)); err != nil {
		t.Fatal(err)
	}
	w.buildAll(t)
	w.retryFailed(t.Context(), w.vms)
	w.requireStates(t, Failed)
	if got := w.events(t); len(got) != 1 || !strings.Contains(got[0].Error, "panicked") {
		t.Errorf("the events are %+v", got)
	}
	w.later(shape(64).Key(), failureBackoff)
	w.vms.unready = nil
	w.retryFailed(t.Context(), w.vms)
	w.buildAll(t)
	w.requireStates(t, Ready)

	w.vms.unready, w.vms.stale = errs.New(errs.Unavailable, "wait_timeout", "again"), true
	if err := w.Keep(t.Context(), shape(65)); err != nil {
		t.Fatal(err)
	}
	w.buildAll(t)
	w.later(shape(65).Key(), failureBackoff)
	w.retryFailed(t.Context(), w.vms)
	w.requireStates(t, Ready) // that of the first shape
}
