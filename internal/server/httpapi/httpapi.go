// Package httpapi is the REST door: it decodes requests, asks who is calling,
// hands over to the nouns, and encodes what comes back.
//
// It decides nothing about VMs, images or keys, and it listens nowhere: [New]
// makes a handler, and the daemon serves it. Each noun has one file here, of
// the same name as everywhere else; routes.go is the table of all routes and
// errors.go the only place where an error becomes a status.
//
// The server that serves the handler should set ReadHeaderTimeout and
// IdleTimeout, and neither ReadTimeout nor WriteTimeout: a wait takes up to ten
// minutes and a followed log any time. The handler bounds the reading of bodies
// and each single write by itself. Streams end when the server's BaseContext is
// cancelled.
package httpapi

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// Machines is what can be done with VMs. [vm.Service] is one.
type Machines interface {
	Create(ctx context.Context, owner string, req vm.CreateRequest) (vm.VM, error)
	Get(ctx context.Context, owner, id string) (vm.VM, error)
	List(ctx context.Context, owner string, f vm.Filter) (page []vm.VM, next string, err error)
	Delete(ctx context.Context, owner, id string) error
	Wait(ctx context.Context, owner, id string, want vm.WaitFor) (vm.VM, error)
	Metrics(ctx context.Context, owner, id string) (vm.Metrics, error)
	// ShapeFor is the shape of the VM that a request asks for.
	ShapeFor(ctx context.Context, owner string, req vm.CreateRequest) (vm.Shape, error)
	Power
	Copier
	Screen
}

// Power changes whether a VM runs.
type Power interface {
	Start(ctx context.Context, owner, id string) (vm.VM, error)
	Stop(ctx context.Context, owner, id string) (vm.VM, error)
	Restart(ctx context.Context, owner, id string) (vm.VM, error)
	Pause(ctx context.Context, owner, id string) (vm.VM, error)
	Resume(ctx context.Context, owner, id string) (vm.VM, error)
	Sleep(ctx context.Context, owner, id string) (vm.VM, error)
	Wake(ctx context.Context, owner, id string) (vm.VM, error)
}

// Copier keeps what a VM is at one moment, and makes VMs that go on from there.
type Copier interface {
	Snapshot(ctx context.Context, owner, id string, req vm.SnapshotRequest) (snapshot.Snapshot, error)
	// Restore puts a VM back to a snapshot of it; "" is the newest.
	Restore(ctx context.Context, owner, id, snapshotID string) (vm.VM, error)
	Fork(ctx context.Context, owner, id string, req vm.CopyRequest) (vm.Copies, error)
	CreateFrom(ctx context.Context, owner, snapshotID string, req vm.CopyRequest) (vm.Copies, error)
	// Fits returns why VMs cannot go on from a snapshot here, or nil.
	Fits(one snapshot.Snapshot) error
}

// Screen shows a VM's serial console, and what its VMM printed.
type Screen interface {
	VMMLog(ctx context.Context, owner, id string, tail int, follow bool, w io.Writer) error
	Log(ctx context.Context, owner, id string, tail int, follow bool, w io.Writer) error
	Console(ctx context.Context, owner, id string, readOnly bool) (io.ReadWriteCloser, error)
}

// Authenticator tells whose key a secret is.
type Authenticator interface {
	// Authenticate returns the caller. Errors: errs.Unauthenticated.
	Authenticate(ctx context.Context, secret string) (access.Principal, error)
}

// Config is what the door stands between. All fields are required.
type Config struct {
	VMs       Machines
	Snapshots Snapshots
	Images    Images
	Warm      Warm
	Templates Templates
	Keys      Keys
	Events    Events
	Webhooks  Webhooks
	Files     Files
	Processes Processes
	Access    Authenticator
	Health    func(ctx context.Context) api.Health
	Version   string // of hatchd
	Log       *slog.Logger
}

// door holds what handlers need.
type door struct {
	Config
	schemas huma.Registry // of the OpenAPI document
}

// New returns the handler of the whole API.
func New(cfg Config) http.Handler {
	d := &door{Config: cfg}
	mux := http.NewServeMux()
	described := humago.New(mux, describe(cfg.Version))
	described.UseMiddleware(asBadRequest)
	d.schemas = described.OpenAPI().Components.Schemas
	d.schemas.RegisterTypeAlias(reflect.TypeFor[api.Command](), reflect.TypeFor[commandSchema]())
	for _, r := range d.routes() {
		r.register(described, r.operation())
	}
	tidySchemas(described.OpenAPI())
	d.serveDocs(mux, described.OpenAPI())
	mux.HandleFunc("/", d.noRoute(mux))
	return d.identify(d.observe(d.authenticate(d.readBody(mux))))
}

// describe returns what the OpenAPI document says of the API as a whole.
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
