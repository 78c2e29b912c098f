package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// builder builds when the test says so.
type builder struct {
	built   Built
	started chan struct{} // a value for each build that began
	result  chan error    // a value ends a build
}

func newBuilder() *builder {
	return &builder{started: make(chan struct{}, 8), result: make(chan error, 8)}
}

func (b *builder) Build(ctx context.Context, recipe string, _ bool, progress io.Writer) (Built, error) {
	_, _ = fmt.Fprintln(progress, "building", recipe)
	b.started <- struct{}{}
	select {
	case err := <-b.result:
		_, _ = fmt.Fprintln(progress, "the end")
		return b.built, err
	case <-ctx.Done():
		return Built{}, ctx.Err()
	}
}

func (w *world) start(t *testing.T, recipe string) Build {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the client disconnects, which does not end the build
	b, err := w.StartBuild(ctx, "me", recipe, false)
	if err != nil || b.State != BuildRunning {
		t.Fatalf("got %+v, %v", b, err)
	}
	<-w.builder.started
	return b
}

// ended follows the log to its end and returns both.
func (w *world) ended(t *testing.T, id string) (Build, string) {
	t.Helper()
	var log bytes.Buffer
	if err := w.BuildLog(t.Context(), access.Owner("me"), id, true, &log); err != nil {
		t.Fatal(err)
	}
	b, err := w.Build(t.Context(), access.Owner("me"), id)
	if err != nil {
		t.Fatal(err)
	}
	return b, log.String()
}

func TestBuildBecomesItsImage(t *testing.T) {
	for recipe, id := range map[string]string{"debian": DefaultID, "minimal": MinimalID} {
		w := newWorld(t)
		b := w.start(t, recipe)
		w.builder.result <- nil
		done, log := w.ended(t, b.ID)
		if done.State != BuildDone || done.ImageID != id || done.FinishedAt == nil {
			t.Errorf("%s: got %+v", recipe, done)
		}
		if log != "building "+recipe+"\nthe end\n" {
			t.Errorf("%s: the log is %q", recipe, log)
		}
		if i, err := w.Image(t.Context(), access.Owner(access.SystemID), id); err != nil || i.Name != recipe || i.Sharing.Visibility != access.Public {
			t.Errorf("%s: got %+v, %v", recipe, i, err)
		}
	}
}

func TestOneBuildOfARecipeAtATime(t *testing.T) {
	w := newWorld(t)
	first := w.start(t, "debian")
	again, err := w.StartBuild(t.Context(), "me", "debian", true)
	if err != nil || again.ID != first.ID {
		t.Errorf("a second start got %+v, %v; want the running build", again, err)
	}
	if _, err := w.StartBuild(t.Context(), "other", "debian", false); !errs.HasCode(err, "build_running") {
		t.Errorf("another owner got %v", err)
	}
	if other := w.start(t, "minimal"); other.ID == first.ID {
		t.Error("another recipe got the same build")
	}
	w.builder.result <- nil
	w.builder.result <- nil
	w.ended(t, first.ID)
	if next := w.start(t, "debian"); next.ID == first.ID {
		t.Error("an ended build was returned as running")
	}
	w.builder.result <- nil
}

func TestFailedBuildSaysWhy(t *testing.T) {
	w := newWorld(t)
	b := w.start(t, "debian")
	w.builder.result <- errors.New("no package sources")
	done, _ := w.ended(t, b.ID)
	if done.State != BuildFailed || !strings.Contains(done.Error, "no package sources") || done.ImageID != "" {
		t.Errorf("got %+v", done)
	}
	if w.store.writes != 0 {
		t.Error("a failed build became an image")
	}
}

func TestBuildsAreTheirOwners(t *testing.T) {
	w := newWorld(t)
	b := w.start(t, "debian")
	if _, err := w.Build(t.Context(), access.Owner("other"), b.ID); !errs.HasCode(err, "build_not_found") {
		t.Errorf("got %v", err)
	}
	if err := w.BuildLog(t.Context(), access.Owner("other"), b.ID, false, io.Discard); !errs.HasCode(err, "build_not_found") {
		t.Errorf("got %v", err)
	}
	if _, err := w.StartBuild(t.Context(), "me", "windows", false); !errs.HasCode(err, "invalid_recipe") {
		t.Errorf("got %v", err)
	}
	w.builder.result <- nil
}

func TestCloseEndsBuilds(t *testing.T) {
	w := newWorld(t)
	b := w.start(t, "debian")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if done, _ := w.ended(t, b.ID); done.State != BuildFailed {
		t.Errorf("got %+v", done)
	}
	if _, err := w.StartBuild(t.Context(), "me", "debian", false); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v after Close", err)
	}
}

func TestBuildLogIsBounded(t *testing.T) {
	var l buildLog
	l.init()
	line := strings.Repeat("x", 1023) + "\n"
	for range 3 << 10 {
		_, _ = io.WriteString(&l, line)
	}
	_, _ = io.WriteString(&l, "last\n")
	l.end()
	var all bytes.Buffer
	if err := l.copyTo(t.Context(), true, &all); err != nil {
		t.Fatal(err)
	}
	if all.Len() < maxBuildLog || all.Len() > 2*maxBuildLog || !strings.HasSuffix(all.String(), "last\n") {
		t.Errorf("got %d bytes, ending in %q", all.Len(), all.String()[max(0, all.Len()-10):])
	}
}

func TestFollowingEndsWithItsReader(t *testing.T) {
	var l buildLog
	l.init()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.copyTo(ctx, true, io.Discard); err != nil {
		t.Error(err)
	}
}
