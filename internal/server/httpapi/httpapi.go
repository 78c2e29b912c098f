// Package httpapi is the REST door: it authenticates callers, decodes requests,
// calls the services and encodes their results.
//
// It has no rules about VMs, images or keys, and it does not listen: [New] returns
// a handler, and the daemon serves it. Each kind of object has one file here, of
// the same name as elsewhere, with a type of handlers that gets only the services
// it needs. routes.go is the table of all routes, with the right that
// each needs; errors.go is the only place where an error becomes a status.
//
// The server that serves the handler should set ReadHeaderTimeout, MaxHeaderBytes
// and IdleTimeout, and limit its connections (internal/server/admission), but set neither ReadTimeout nor WriteTimeout: a wait takes up to ten
// minutes and a followed log has no end. The handler itself sets deadlines for
// bodies and for each write. Streams end when the server's BaseContext is
// cancelled.
package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/rs/cors"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// Machines manages VMs. [lifecycle.Service] implements it.
type Machines interface {
	Create(ctx context.Context, owner string, req vm.CreateRequest) (vm.VM, error)
	vmGetter
	List(ctx context.Context, scope access.Scope, f vm.Filter) (page []vm.VM, next string, err error)
	// Update and DeleteIf change nothing if their function returns an error.
	Update(ctx context.Context, scope access.Scope, id string, change func(*vm.VM) error) (vm.VM, error)
	DeleteIf(ctx context.Context, scope access.Scope, id string, check func(vm.VM) error) error
	Wait(ctx context.Context, scope access.Scope, id string, want vm.WaitFor) (vm.VM, error)
	Metrics(ctx context.Context, scope access.Scope, id string) (vm.Metrics, error)
	// AwaitCreated returns a VM that an earlier request has made, once that has ended.
	AwaitCreated(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	// ShapeFor returns the shape of the VM that a request describes.
	ShapeFor(ctx context.Context, owner string, req vm.CreateRequest) (vm.Shape, error)
	Power
	Copier
	Screen
	Tunnels
}

type vmGetter interface {
	Get(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
}

// Power starts, stops, pauses, sleeps and wakes VMs.
type Power interface {
	Start(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	// Stop waits for the guest for the timeout, nil for hatchd's own, before it kills.
	Stop(ctx context.Context, scope access.Scope, id string, timeout *time.Duration) (vm.VM, error)
	Restart(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	Pause(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	Resume(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	Sleep(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	// AwaitDurable waits until the memory of a sleeping VM is on disk.
	AwaitDurable(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
	Wake(ctx context.Context, scope access.Scope, id string) (vm.VM, error)
}

// Copier takes snapshots of VMs, and restores and clones VMs from them.
type Copier interface {
	Snapshot(ctx context.Context, scope access.Scope, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error)
	// Restore restores a VM to a snapshot of it, "" for the newest.
	Restore(ctx context.Context, scope access.Scope, id, snapshotID string) (vm.VM, error)
	Fork(ctx context.Context, owner, id string, req vm.CloneRequest) (vm.Clones, error)
	CreateFrom(ctx context.Context, owner, snapshotID string, req vm.CloneRequest) (vm.Clones, error)
	// Fits returns why VMs cannot be restored to or cloned from a snapshot on this
	// host, or nil.
	Fits(snap snapshot.Snapshot) error
}

// Screen reads a VM's serial console and the output of its VMM.
type Screen interface {
	VMMLog(ctx context.Context, scope access.Scope, id string, tail int, follow bool, w io.Writer) error
	Log(ctx context.Context, scope access.Scope, id string, q vm.LogQuery, w io.Writer) error
	Console(ctx context.Context, scope access.Scope, id string, readOnly bool) (io.ReadWriteCloser, error)
}

// Authenticator authenticates callers.
type Authenticator interface {
	// Authenticate returns the caller at an address, the zero one if it is not on the
	// network. Errors: errs.Unauthenticated.
	Authenticate(ctx context.Context, secret string, from netip.Addr) (access.Principal, error)
	// Known authenticates a caller whose key has authenticated before, without the
	// database.
	Known(secret string, from netip.Addr) (caller access.Principal, known bool)
	// Watch returns a context that ends with ctx, or when the caller's key is revoked or
	// expires, or its user is disabled. stop must be called.
	Watch(ctx context.Context, caller access.Principal) (watched context.Context, stop func())
	// Local returns the caller that a process of this host is.
	Local(uid uint32) access.Principal
}

// Config has the services that the door serves. All fields are required but those that
// say what their zero value means.
type Config struct {
	VMs       Machines
	Idle      Idle // nil: how idle VMs are is not shown
	Snapshots Snapshots
	Images    Images
	Warm      Warm
	Templates Templates
	Keys      Keys
	Users     Users
	Events    Events
	Webhooks  Webhooks
	Requests  Requests
	Files     Files
	Processes Processes
	Access    Authenticator
	Health    func(ctx context.Context) api.Health
	Counts    Counts
	E2B       func() (api.E2B, bool) // false: its clients are not served; nil: likewise
	Routes    Routes
	Quotas    Quotas
	Authority Authority
	Audit     Audit
	Version   string // of hatchd
	Log       *slog.Logger

	Limits Limits
	// IdleDefaults has the thresholds of idle policies that name none.
	IdleDefaults machine.IdlePolicy
	// Origins are those whose pages may call the API from a browser, "*" for all; nil
	// means none.
	Origins []string
	// HSTS is how long browsers are told to use TLS only; 0: not at all.
	HSTS time.Duration
	// Lines writes the lines of the log that clients without a key cause; nil: to Log.
	Lines *admission.Log
}

// Limits bound what callers use at a time. 0 means the default.
type Limits struct {
	BodyBytes       int64 // of all bodies that hatchd holds; a user may have half
	RequestsPerUser int64 // in progress, streams and waits among them

	Rates map[admission.Class]admission.Rate // of each key; a class without one has no limit
}

// The default limits.
const (
	defaultBodyBytes       = 32 << 20
	defaultRequestsPerUser = 512
)

// door is what all handlers share: it authenticates callers and
// writes answers, errors and streams.
type door struct {
	access  Authenticator
	made    Requests
	audit   Audit
	log     *slog.Logger
	lines   *admission.Log   // those that clients without a key cause
	schemas huma.Registry    // of the OpenAPI document
	open    map[string]bool  // paths that need no key
	bodied  map[string]bool  // patterns of routes that take a body
	streams map[string]bool  // patterns of routes that write answers of their own
	served  map[string]route // by pattern
	origins *cors.Cors       // of pages that may call; nil: none
	hsts    time.Duration    // as in Config

	idleDefaults machine.IdlePolicy // as in Config

	crossOrigin *http.CrossOriginProtection // of callers without a key

	tries    *admission.Tries  // of keys
	requests *admission.Shares // in progress
	bodies   *admission.Shares // bytes
	rates    *admission.Rates
}

// New returns the handler of the whole API.
func New(cfg Config) http.Handler {
	d, mux, doc := serveRoutes(cfg)
	d.serveDocs(mux, doc)
	mux.HandleFunc("/", d.noRoute(mux))
	return d.linger(d.identify(d.observe(d.allowOrigins(d.authenticate(d.match(mux, d.limitRate(d.record(d.share(d.readBody(d.compress(mux)))))))))))
}

// Document returns the OpenAPI document in JSON, as GET /openapi.json does.
func Document(version string) ([]byte, error) {
	_, _, doc := serveRoutes(Config{Version: version})
	return json.Marshal(doc)
}

// serveRoutes serves the routes of the table, and describes them.
func serveRoutes(cfg Config) (*door, *http.ServeMux, *huma.OpenAPI) {
	mux := http.NewServeMux()
	described := humago.New(mux, describe(cfg.Version))
	described.UseMiddleware(asBadRequest)
	d := newDoor(cfg, described.OpenAPI().Components.Schemas)
	d.schemas.RegisterTypeAlias(reflect.TypeFor[api.Command](), reflect.TypeFor[commandSchema]())
	d.schemas.RegisterTypeAlias(reflect.TypeFor[api.Time](), reflect.TypeFor[time.Time]())
	users := &userHandlers{d, cfg.Users}
	for _, noun := range []interface{ routes() []route }{
		&vmHandlers{d, cfg.VMs, cfg.Idle, &encodedVMs{}, cfg.Routes},
		&outputHandlers{d, cfg.VMs, cfg.Files},
		&tunnelHandlers{d, cfg.VMs},
		&connectHandlers{d, cfg.VMs, cfg.Authority},
		&snapshotHandlers{d, cfg.Snapshots, cfg.VMs},
		&execHandlers{d, cfg.Processes},
		&fileHandlers{d, cfg.Files},
		&eventHandlers{d, cfg.Events, cfg.VMs},
		&webhookHandlers{d, cfg.Webhooks},
		&imageHandlers{d, cfg.Images, users, cfg.Warm, cfg.VMs},
		&templateHandlers{d, cfg.Templates, users, cfg.Routes},
		&keyHandlers{d, cfg.Keys, cfg.Users},
		users,
		&routeHandlers{d, cfg.Routes},
		&quotaHandlers{d, cfg.Quotas},
		&auditHandlers{d, cfg.Audit},
		&e2bHandler{cfg.E2B},
		&healthHandler{cfg.Health, cfg.Counts},
	} {
		for _, r := range noun.routes() {
			d.add(described, r)
		}
	}
	tidySchemas(described.OpenAPI())
	completeDocument(described.OpenAPI())
	return d, mux, described.OpenAPI()
}

func newDoor(cfg Config, schemas huma.Registry) *door {
	bytes := cmp.Or(cfg.Limits.BodyBytes, defaultBodyBytes)
	requests := cmp.Or(cfg.Limits.RequestsPerUser, defaultRequestsPerUser)
	if cfg.Lines == nil {
		cfg.Lines = admission.NewLog(cfg.Log)
	}
	return &door{
		access: cfg.Access, made: cfg.Requests, audit: cfg.Audit, log: cfg.Log, lines: cfg.Lines, schemas: schemas, open: map[string]bool{}, bodied: map[string]bool{}, streams: map[string]bool{}, served: map[string]route{},
		origins: newOrigins(cfg.Origins), hsts: cfg.HSTS, idleDefaults: cfg.IdleDefaults, crossOrigin: http.NewCrossOriginProtection(),
		tries:    admission.NewTries(),
		requests: admission.NewShares(math.MaxInt64, requests), // connections bound them in all
		bodies:   admission.NewShares(bytes, max(bytes/2, maxBody)),
		rates:    admission.NewRates(cfg.Limits.Rates),
	}
}

// describe returns the general part of the OpenAPI document.
func describe(version string) huma.Config {
	cfg := huma.DefaultConfig("Hatch", version)
	cfg.Info.Description = "Self-hosted microVMs: create one and get a Linux machine with an address, an SSH port and your cloud-init."
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "", "", "" // docs.go serves them, to callers with a key
	cfg.CreateHooks = nil                                       // no $schema links in answers
	cfg.Formats = map[string]huma.Format{"application/json": jsonFormat, "json": jsonFormat}
	cfg.RejectUnknownQueryParameters = true
	cfg.Transformers = []huma.Transformer{asProblem}
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer":  {Type: "http", Scheme: "bearer", Description: "Authorization: Bearer YOUR_API_KEY"},
		"api_key": {Type: "apiKey", In: "header", Name: "X-API-Key", Description: "X-API-Key: YOUR_API_KEY"},
	}
	cfg.Security = []map[string][]string{{"bearer": {}}, {"api_key": {}}}
	return cfg
}
