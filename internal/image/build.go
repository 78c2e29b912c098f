package image

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// recipes are the ids of the images by their recipe.
var recipes = map[string]string{"debian": DefaultID, "minimal": MinimalID, "base": BaseID}

// BuildState is the state of a build.
type BuildState string

// The states of a build.
const (
	BuildRunning BuildState = "running"
	BuildDone    BuildState = "done"
	BuildFailed  BuildState = "failed"
)

// Build is a build of an image, running or ended. hatchd forgets builds when it
// ends.
type Build struct {
	ID, OwnerID, Recipe string
	State               BuildState
	Error               string
	ImageID             string // once done
	Cached              bool
	StartedAt           time.Time
	FinishedAt          *time.Time
}

// build is a Build with its log.
type build struct {
	log buildLog

	mu   sync.Mutex
	info Build
}

func (b *build) current() Build {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.info
}

// maxBuilds bounds the list of builds.
const maxBuilds = 32

// StartBuild starts building a recipe and returns at once. It returns the owner's
// running build of that recipe, if there is one.
// Errors: errs.Invalid for an unknown recipe; errs.Conflict with code build_running
// during another owner's build of it.
func (s *Service) StartBuild(_ context.Context, owner, recipe string, force bool) (Build, error) {
	if recipes[recipe] == "" {
		return Build{}, errs.InvalidField("recipe", "%q is not a recipe: want debian, minimal or base", recipe)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running.Err() != nil {
		return Build{}, errs.New(errs.Unavailable, "shutting_down", "cannot start a build: hatchd is shutting down")
	}
	for _, b := range s.builds {
		info := b.current()
		if info.Recipe != recipe || info.State != BuildRunning {
			continue
		}
		if info.OwnerID != owner {
			return Build{}, errs.New(errs.Conflict, "build_running", "cannot start a build: this recipe is being built already").WithHint("try again later")
		}
		return info, nil
	}
	s.forgetOldest()
	b := &build{info: Build{
		ID: id.New("bld_"), OwnerID: owner, Recipe: recipe, State: BuildRunning,
		StartedAt: time.Now().UTC().Truncate(time.Microsecond),
	}}
	b.log.init()
	s.builds[b.info.ID] = b
	s.work.Go(func() { s.run(b, force) })
	return b.current(), nil
}

// forgetOldest keeps the list within its bound. Precondition: s.mu is held.
func (s *Service) forgetOldest() {
	for len(s.builds) >= maxBuilds {
		var oldest Build
		for _, b := range s.builds {
			if info := b.current(); info.State != BuildRunning && (oldest.ID == "" || info.StartedAt.Before(oldest.StartedAt)) {
				oldest = info
			}
		}
		delete(s.builds, oldest.ID)
	}
}

// run builds and registers the image.
func (s *Service) run(b *build, force bool) {
	info := b.current()
	built, err := s.builder.Build(s.running, info.Recipe, force, &b.log)
	if err == nil {
		err = s.replace(s.running, access.SystemID, Registration{
			ID: recipes[info.Recipe], Name: info.Recipe,
			KernelPath: built.Kernel, RootfsPath: built.Rootfs, ModulesPath: built.Modules, Trusted: true,
		})
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	b.mu.Lock()
	b.info.FinishedAt, b.info.Cached = &now, built.Cached
	if b.info.State, b.info.ImageID = BuildDone, recipes[info.Recipe]; err != nil {
		b.info.State, b.info.ImageID, b.info.Error = BuildFailed, "", err.Error()
	}
	b.mu.Unlock()
	if err != nil {
		s.log.Error("image build failed", "recipe", info.Recipe, logkey.Error, err)
	}
	b.log.end()
}

func (s *Service) find(scope access.Scope, id string) (*build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.builds[id]
	if b == nil || !scope.Sees(b.current().OwnerID) {
		return nil, errs.New(errs.NotFound, "build_not_found", "there is no build %q", id).
			WithHint("builds are forgotten when hatchd ends")
	}
	return b, nil
}

// Build returns one build. Errors: errs.NotFound.
func (s *Service) Build(_ context.Context, scope access.Scope, id string) (Build, error) {
	b, err := s.find(scope, id)
	if err != nil {
		return Build{}, err
	}
	return b.current(), nil
}

// BuildLog writes a build's log to w and, with follow, new output until the build
// or ctx ends.
func (s *Service) BuildLog(ctx context.Context, scope access.Scope, id string, follow bool, w io.Writer) error {
	b, err := s.find(scope, id)
	if err != nil {
		return err
	}
	return b.log.copyTo(ctx, follow, w)
}

// maxBuildLog is the size in bytes that a build's log is cut to when it has twice as
// many.
const maxBuildLog = 1 << 20

// buildLog is a bounded text that can be followed while it grows.
type buildLog struct {
	mu      sync.Mutex
	text    []byte
	dropped int           // bytes cut off at the start
	grown   chan struct{} // closed at the next write or at the end
	ended   bool
}

func (l *buildLog) init() { l.grown = make(chan struct{}) }

// Write implements io.Writer; it never fails.
func (l *buildLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if len(l.text) > 2*maxBuildLog { // rarely: it copies
		over := len(l.text) - maxBuildLog
		l.text = append([]byte(nil), l.text[over:]...)
		l.dropped += over
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return len(p), nil
}

func (l *buildLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.grown)
	l.grown = make(chan struct{})
}

// after returns the text from a position on, and a channel that is closed when the
// log has grown or ended.
func (l *buildLog) after(pos int) (text []byte, next int, grown <-chan struct{}, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	start := max(0, pos-l.dropped)
	return append([]byte(nil), l.text[start:]...), l.dropped + len(l.text), l.grown, l.ended
}

func (l *buildLog) copyTo(ctx context.Context, follow bool, w io.Writer) error {
	pos := 0
	for {
		text, next, grown, ended := l.after(pos)
		if _, err := w.Write(text); err != nil {
			return err
		}
		pos = next
		if ended || !follow {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		}
	}
}
