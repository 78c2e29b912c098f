// Package e2b is the door for E2B's client libraries: it serves their control plane, and
// leads each request for a sandbox to its agent or to a port of its guest.
//
// A sandbox is an ordinary VM whose row says that it is one ([machine.Sandbox]). The
// package has no rules about VMs: it translates requests, ids, states and errors, and
// keeps one promise of its own, that a sandbox's time stands still while it is paused.
// What agents and ports answer is not its business: [Config.Agent] and [Config.Ports]
// do. Start at [Door.ServeHTTP]; place.go decides where a request leads, route.go has the
// table of the control plane, data.go the way to a sandbox.
package e2b

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
)

// VMs manages VMs. [lifecycle.Service] implements it.
type VMs interface {
	Reader
	Maker
	Power
	// Update and DeleteIf change nothing if their function returns an error.
	Update(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error)
	DeleteIf(ctx context.Context, scope access.Scope, id string, check func(vm.VM) error) error
	Wait(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error)
}

// Reader reads VMs, and what they use and print.
type Reader interface {
	Get(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	List(ctx context.Context, scope access.Scope, f vm.Filter) (page []vm.VM, next string, err error)
	Metrics(ctx context.Context, scope access.Scope, id string) (vm.Metrics, error)
	Log(ctx context.Context, scope access.Scope, id string, q vm.LogQuery, w io.Writer) error
}

// Maker makes VMs and snapshots.
type Maker interface {
	Create(ctx context.Context, owner string, req vm.CreateRequest) (vm.VM, error)
	// AwaitCreated returns a VM that an earlier request has made, once that has ended.
	AwaitCreated(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	CreateFrom(ctx context.Context, owner, snapshotID string, req vm.CloneRequest) (vm.Clones, error)
	Fork(ctx context.Context, owner, id string, req vm.CloneRequest) (vm.Clones, error)
	Snapshot(ctx context.Context, scope access.Scope, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error)
}

// Power puts VMs to sleep and wakes them.
type Power interface {
	Sleep(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	Wake(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	// Resume continues a VM whose CPUs stand still.
	Resume(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
}

// Templates finds templates. [template.Service] implements it.
type Templates interface {
	Get(ctx context.Context, scope access.Scope, idOrName string) (template.Template, error)
	List(ctx context.Context, scope access.Scope) ([]template.Template, error)
}

// Images finds images. [image.Service] implements it.
type Images interface {
	Get(ctx context.Context, scope access.Scope, idOrName string) (image.Image, error)
	List(ctx context.Context, scope access.Scope) ([]image.Image, error)
}

// Snapshots manages existing snapshots. [snapshot.Service] implements it.
type Snapshots interface {
	Get(ctx context.Context, scope access.Scope, idOrName string) (snapshot.Snapshot, error)
	List(ctx context.Context, scope access.Scope, f snapshot.Filter) ([]snapshot.Snapshot, error)
	Delete(ctx context.Context, scope access.Scope, idOrName string) error
}

// Authenticator authenticates callers by their API key. [access.Service] implements it.
type Authenticator interface {
	// Authenticate returns the caller at an address. Errors: errs.Unauthenticated.
	Authenticate(ctx context.Context, secret string, from netip.Addr) (access.Principal, error)
	// Known authenticates a caller whose key has authenticated before, from memory.
	Known(secret string, from netip.Addr) (caller access.Principal, known bool)
	// Watch returns a context that also ends when the caller's key does.
	Watch(ctx context.Context, caller access.Principal) (watched context.Context, stop func())
}

// Requests finds what earlier requests with an Idempotency-Key have made.
type Requests interface {
	Made(ctx context.Context, r idempotency.Request) (ids []string, err error)
}

// Sandbox is a sandbox as its agent is to serve a request.
type Sandbox struct {
	ID, Template string // as clients name them
	VMID, Owner  string
	Token        string            // expected X-Access-Token; "": none is needed
	Env          map[string]string // of each process
	DefaultUser  string
	AutoResume   bool
}

// Config says what the door leads to. All fields are required but those that say
// what their zero value means.
type Config struct {
	VMs       VMs
	Templates Templates
	Images    Images
	Snapshots Snapshots
	Access    Authenticator
	Requests  Requests
	Audit     Audit

	// Agent serves a request for the agent of a sandbox that runs.
	Agent func(w http.ResponseWriter, r *http.Request, s Sandbox)
	// Ports serves a request for any other port of it.
	Ports func(w http.ResponseWriter, r *http.Request, s Sandbox, port int)

	// Defaults are the sizes of a VM whose template says nothing.
	Defaults machine.Spec
	// APIHost is the host name of the control plane where it has one.
	APIHost string
	// Domain is what sandboxes' host names are below, with the port unless it is that of
	// https.
	Domain string
	// Secret is what access tokens are derived from; at least 32 bytes.
	Secret []byte

	RequestsPerUser int64                              // in progress; 0: 512
	Rates           map[admission.Class]admission.Rate // of each key; a class without one has no limit
	Log             *slog.Logger
	Lines           *admission.Log // that clients without a key cause; nil: to Log
}

// Bounds on what callers use at a time.
const (
	defaultRequests = 512
	bodyBytes       = 32 << 20
)

// Door is an http.Handler, and is told of changes of VMs. Run must be called once.
type Door struct {
	cfg      Config
	routes   []route
	tries    *admission.Tries
	requests *admission.Shares
	bodies   *admission.Shares
	rates    *admission.Rates
	time     timekeeper
	catalog  catalog
}

// New returns a door.
func New(cfg Config) *Door {
	if cfg.Lines == nil {
		cfg.Lines = admission.NewLog(cfg.Log)
	}
	d := &Door{
		cfg: cfg, tries: admission.NewTries(),
		requests: admission.NewShares(math.MaxInt64, cmp.Or(cfg.RequestsPerUser, defaultRequests)),
		bodies:   admission.NewShares(bodyBytes, bodyBytes/2),
		rates:    admission.NewRates(cfg.Rates),
	}
	d.time = timekeeper{vms: cfg.VMs, log: cfg.Log, changed: make(chan struct{}, 1), due: map[string]struct{}{}, held: map[string]int{}}
	d.catalog = catalog{cfg.Templates, cfg.Images, cfg.Snapshots, cfg.Defaults}
	d.routes = d.table()
	return d
}

// ServeHTTP serves one request, of either plane.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &answer{ResponseWriter: w}
	defer func() {
		failure := recover()
		if failure == nil {
			return
		}
		if failure != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
			d.cfg.Log.ErrorContext(r.Context(), "a request of an E2B client has failed", logkey.Error, failure)
		}
		if out.begun || failure == http.ErrAbortHandler { //nolint:errorlint // as above
			panic(http.ErrAbortHandler)
		}
		writeError(out, http.StatusInternalServerError, internalText)
	}()
	p := d.placeOf(r)
	if p.kind != atPort { // ports decide by themselves who may call them
		allowOrigins(out.Header())
		if r.Method == http.MethodOptions {
			out.WriteHeader(http.StatusNoContent)
			return
		}
	}
	switch p.kind {
	case atControl:
		d.serveControl(out, r)
	case atAgent, atPort:
		d.serveSandbox(out, r, p)
	default:
		writeError(out, http.StatusBadRequest, "this host has many sandboxes: send the header E2b-Sandbox-Id, or use the host name PORT-SANDBOX and the domain")
	}
}

// allowOrigins lets pages of all origins call: they need a key or a token, which a
// browser never sends by itself.
func allowOrigins(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Headers", "*, Authorization")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
	h.Set("Access-Control-Expose-Headers", "*")
	h.Set("Access-Control-Max-Age", "600")
}

// answer notes whether an answer has begun, and its status.
type answer struct {
	http.ResponseWriter
	begun  bool
	status int
}

// Unwrap gives http.ResponseController the writer below.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.begun, a.status = true, status
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(b)
}

// Run keeps the time of sandboxes until ctx is done. Call it after startup recovery.
func (d *Door) Run(ctx context.Context) { d.time.run(ctx) }

// Changed is called after every change of a VM. It is quick.
func (d *Door) Changed(v vm.VM) { d.time.changedVM(v) }
