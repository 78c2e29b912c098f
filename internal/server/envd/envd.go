// Package envd is the door to the inside of one VM for the SDKs of E2B: their processes,
// files and watches, spoken as Connect calls and plain HTTP, as the agent of E2B does.
//
// It resolves no names and knows no API keys: its caller finds the VM that a request is
// for, and passes a [Sandbox]. It checks the sandbox's own token, and wakes the VM if that
// is allowed. The services of processes and files do the work in a VM; this package runs
// outside of the guest. Start at [New]; routes has each call.
package envd

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/connect"
	"github.com/hatchvm/hatch/internal/vm"
)

// Port is the port of a sandbox that this door serves in place of the guest.
const Port = 49983

// Sandbox is a VM as the SDKs see it.
type Sandbox struct {
	ID       string // as the SDKs call it
	Template string // likewise
	VMID     string
	Owner    string // id of the user that the VM belongs to
	Token    string // that X-Access-Token must have; "" when none is needed

	Env         map[string]string // of each process
	DefaultUser string            // "" means root
	Dir         string            // that processes of the default user begin in; "" means its home
	AutoResume  bool              // a request wakes the VM
}

// Processes works with processes in guests. [process.Service] does.
type Processes interface {
	Open(ctx context.Context, scope access.Scope, vmID string, spec func() (process.Spec, error)) (process.Stream, error)
	Attach(ctx context.Context, scope access.Scope, vmID, id string, from int64) (process.Stream, error)
	List(ctx context.Context, scope access.Scope, vmID string) ([]process.Process, error)
	Get(ctx context.Context, scope access.Scope, vmID, id string) (process.Process, error)
	Signal(ctx context.Context, scope access.Scope, vmID, id, signal string) error
	WriteStdin(ctx context.Context, scope access.Scope, vmID, id string, data []byte, end bool) error
	Resize(ctx context.Context, scope access.Scope, vmID, id string, size process.Size) error
}

// Files works on files in guests. [file.Service] does.
type Files interface {
	Read(ctx context.Context, scope access.Scope, vmID string, spec file.ReadSpec) (file.Info, io.ReadCloser, error)
	Write(ctx context.Context, scope access.Scope, vmID string, spec file.WriteSpec, content io.Reader) (file.Info, error)
	Stat(ctx context.Context, scope access.Scope, vmID, path string) (file.Info, error)
	List(ctx context.Context, scope access.Scope, vmID, path string, each func(file.Info) error) error
	MakeDirectory(ctx context.Context, scope access.Scope, vmID string, spec file.DirectorySpec) (file.Info, error)
	Rename(ctx context.Context, scope access.Scope, vmID, from, to string) (file.Info, error)
	Remove(ctx context.Context, scope access.Scope, vmID string, spec file.RemoveSpec) error
	Watch(ctx context.Context, scope access.Scope, vmID, path string, recursive bool, began func(), report func(file.Change) error) error
}

// Machines says which VMs run.
type Machines interface {
	// Ready returns once the VM runs, after a sleep or a wake in progress. If it sleeps,
	// it is woken if wake says so. Errors: errs.NotFound; errs.Conflict for a VM that
	// does not run.
	Ready(ctx context.Context, scope access.Scope, vmID string, wake bool) error
	// Metrics measures what the VM uses.
	Metrics(ctx context.Context, scope access.Scope, vmID string) (vm.Metrics, error)
}

// Config is what an Envd needs. All fields are required.
type Config struct {
	Processes Processes
	Files     Files
	Machines  Machines
	Log       *slog.Logger
}

// Envd serves the requests for port [Port] of sandboxes.
type Envd struct {
	cfg      Config
	routes   map[string]route
	accounts accounts
	targets  targets
	watchers watchers
}

// New returns a door.
func New(cfg Config) *Envd {
	e := &Envd{cfg: cfg, routes: routes()}
	e.accounts.known = map[accountKey]account{}
	e.targets.known = map[targetKey]target{}
	e.watchers.all, e.watchers.instance = map[string]*watcher{}, id.New("w")
	return e
}

// Close ends the watches, and waits for them. No request may be in progress.
func (e *Envd) Close() { e.watchers.close() }

// route serves a request whose token has been checked, for a VM that runs.
type route func(e *Envd, w http.ResponseWriter, r *http.Request, c call)

// call is a request for a sandbox.
type call struct {
	Sandbox
	scope  access.Scope
	user   string // that the request names; "" when it names none
	strict bool   // the client is an oldClient
}

// account returns the name of the user that the request works as.
func (c call) account() string {
	for _, name := range []string{c.user, c.DefaultUser} {
		if name != "" {
			return name
		}
	}
	return "root"
}

// routes returns the calls by their paths.
func routes() map[string]route {
	const processes, files = "/process.Process/", "/filesystem.Filesystem/"
	return map[string]route{
		processes + "Start":       (*Envd).start,
		processes + "Connect":     (*Envd).connect,
		processes + "List":        unary((*Envd).list),
		processes + "SendInput":   unary((*Envd).sendInput),
		processes + "StreamInput": (*Envd).streamInput,
		processes + "CloseStdin":  unary((*Envd).closeStdin),
		processes + "SendSignal":  unary((*Envd).sendSignal),
		processes + "Update":      unary((*Envd).update),

		files + "Stat":             unary((*Envd).stat),
		files + "ListDir":          unary((*Envd).listDir),
		files + "MakeDir":          unary((*Envd).makeDir),
		files + "Move":             unary((*Envd).move),
		files + "Remove":           unary((*Envd).remove),
		files + "WatchDir":         (*Envd).watchDir,
		files + "CreateWatcher":    unary((*Envd).createWatcher),
		files + "GetWatcherEvents": unary((*Envd).watcherEvents),
		files + "RemoveWatcher":    unary((*Envd).removeWatcher),

		"/files":   (*Envd).files,
		"/envs":    get((*Envd).envs),
		"/metrics": get((*Envd).metrics),
		"/health":  get(func(_ *Envd, w http.ResponseWriter, _ *http.Request, _ call) { w.WriteHeader(http.StatusNoContent) }),
	}
}

// unary is the route of a call with one message each way.
func unary[Req any](do func(e *Envd, ctx context.Context, c call, req *Req) (any, error)) route {
	return func(e *Envd, w http.ResponseWriter, r *http.Request, c call) {
		connect.Unary(w, r, func(ctx context.Context, req *Req) (any, error) {
			answer, err := do(e, ctx, c, req)
			if err != nil {
				return nil, e.explain(ctx, c, err)
			}
			return answer, nil
		})
	}
}

// get is a route for one method only.
func get(do route) route {
	return func(e *Envd, w http.ResponseWriter, r *http.Request, c call) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed, "this is read with GET")
			return
		}
		do(e, w, r, c)
	}
}

// readyTimeout is how long a request waits for a VM that is put to sleep or woken.
const readyTimeout = time.Minute

// ServeHTTP serves a request for a sandbox.
func (e *Envd) ServeHTTP(w http.ResponseWriter, r *http.Request, s Sandbox) {
	allowOrigins(w.Header())
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	serve, known := e.routes[r.URL.Path]
	if !known {
		e.unknown(w, r)
		return
	}
	user, _, _ := r.BasicAuth()
	c := call{Sandbox: s, scope: access.Owner(s.Owner), user: user, strict: r.UserAgent() == oldClient}
	why := c.distrust(r)
	if why != "" && r.URL.Path != "/health" {
		unauthorized(w, r, why)
		return
	}
	// Without the token no request wakes a VM.
	if err := e.ready(r.Context(), c, why == "" && s.AutoResume); err != nil {
		e.notReady(w, r, c, err)
		return
	}
	serve(e, w, r, c)
}

func (e *Envd) ready(ctx context.Context, c call, wake bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return e.cfg.Machines.Ready(ctx, c.scope, c.VMID, wake)
}

// notReady answers for a VM that does not run. One that is not there, or sleeps and must
// not be woken, has the same answer.
func (e *Envd) notReady(w http.ResponseWriter, r *http.Request, c call, err error) {
	switch errs.KindOf(err) {
	case errs.NotFound, errs.Conflict:
		NotFound(w, c.ID)
	default:
		e.fail(w, r, c, err)
	}
}

// unknown answers a request for no route.
func (e *Envd) unknown(w http.ResponseWriter, r *http.Request) {
	if isCall(r) {
		connect.WriteError(w, connect.Errorf(connect.Unimplemented, "there is no call %s", errs.Brief(r.URL.Path)))
		return
	}
	refuse(w, http.StatusNotFound, "there is nothing at this path")
}

// isCall reports whether a request is for a call of Connect.
func isCall(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/process.Process/") || strings.HasPrefix(r.URL.Path, "/filesystem.Filesystem/")
}

// allowOrigins lets pages of all origins read answers: they need the token for anything
// that matters, and send no cookies.
func allowOrigins(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Headers", "*, Authorization")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
	h.Set("Access-Control-Expose-Headers", "*")
	h.Set("Access-Control-Max-Age", "7200")
}

// boundedMap is a map with a limit, for what can be found again. It forgets all at its
// limit.
type boundedMap[K comparable, V any] struct {
	mu    sync.Mutex
	known map[K]V
}

const maxKnown = 16 << 10

func (m *boundedMap[K, V]) get(key K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok := m.known[key]
	return value, ok
}

func (m *boundedMap[K, V]) put(key K, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= maxKnown {
		clear(m.known)
	}
	m.known[key] = value
}
