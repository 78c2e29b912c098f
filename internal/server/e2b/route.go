package e2b

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/server/admission"
)

// route is one row of the table of the control plane. A segment of its path in braces
// matches any.
type route struct {
	method, path string
	needs        access.Right
	serve        func(*call) error
}

func (d *Door) table() []route {
	readVMs, writeVMs := access.Read(access.VMs), access.Write(access.VMs)
	readTemplates := access.Read(access.Templates)
	return append([]route{
		{"POST", "/sandboxes", writeVMs, d.createFirst},
		{"POST", "/v2/sandboxes", writeVMs, d.createSecond},
		{"GET", "/sandboxes", readVMs, d.listRunning},
		{"GET", "/v2/sandboxes", readVMs, d.listPage},
		{"GET", "/sandboxes/metrics", readVMs, d.metricsOfMany},
		{"GET", "/sandboxes/{id}", readVMs, d.get},
		{"DELETE", "/sandboxes/{id}", writeVMs, d.kill},
		{"POST", "/sandboxes/{id}/timeout", writeVMs, d.setTimeout},
		{"POST", "/sandboxes/{id}/refreshes", writeVMs, d.refresh},
		{"POST", "/sandboxes/{id}/connect", writeVMs, d.connectFirst},
		{"POST", "/v2/sandboxes/{id}/connect", writeVMs, d.connectSecond},
		{"POST", "/sandboxes/{id}/resume", writeVMs, d.resume},
		{"POST", "/sandboxes/{id}/pause", writeVMs, d.pause},
		{"POST", "/sandboxes/{id}/snapshots", access.Write(access.Snapshots), d.takeSnapshot},
		{"POST", "/sandboxes/{id}/fork", writeVMs, d.fork},
		{"GET", "/sandboxes/{id}/metrics", readVMs, d.metrics},
		{"GET", "/sandboxes/{id}/logs", readVMs, d.logs},
		{"GET", "/v2/sandboxes/{id}/logs", readVMs, d.logsSecond},
		{"GET", "/snapshots", access.Read(access.Snapshots), d.listSnapshots},
		{"GET", "/templates", readTemplates, d.listTemplates},
		{"GET", "/v2/templates", readTemplates, d.listTemplates},
		{"GET", "/templates/aliases/{alias}", readTemplates, d.alias},
		{"GET", "/templates/{id}", readTemplates, d.getTemplate},
		{"DELETE", "/templates/{id}", access.Write(access.Snapshots), d.deleteTemplate},
	}, refusals()...)
}

// refusals are routes of clients that this server does not have. Each says so by name, so
// that a program that relies on it fails where it asks.
func refusals() []route {
	var all []route
	for _, r := range []struct{ what, method, path string }{
		{"network rules (update_network)", "PUT", "/sandboxes/{id}/network"},
		{"builds of templates", "POST", "/templates"},
		{"builds of templates", "POST", "/v2/templates"},
		{"builds of templates", "POST", "/v3/templates"},
		{"builds of templates", "GET", "/templates/{id}/files/{hash}"},
		{"builds of templates", "POST", "/templates/{id}/builds/{build}"},
		{"builds of templates", "POST", "/v2/templates/{id}/builds/{build}"},
		{"builds of templates", "GET", "/templates/{id}/builds/{build}/status"},
		{"builds of templates", "GET", "/templates/{id}/builds/{build}/logs"},
		{"changes of templates", "PATCH", "/templates/{id}"},
		{"changes of templates", "PATCH", "/v2/templates/{id}"},
		{"tags of templates", "POST", "/templates/tags"},
		{"tags of templates", "DELETE", "/templates/tags"},
		{"tags of templates", "GET", "/templates/{id}/tags"},
		{"tags of templates", "GET", "/templates/{id}/tags/{tag}"},
		{"default templates", "GET", "/default-templates"},
		{"teams", "GET", "/teams"},
		{"volumes", "GET", "/volumes"},
		{"volumes", "POST", "/volumes"},
		{"volumes", "GET", "/volumes/{id}"},
		{"volumes", "DELETE", "/volumes/{id}"},
		{"secrets", "GET", "/secrets"},
		{"secrets", "POST", "/secrets"},
		{"secrets", "GET", "/secrets/{id}"},
		{"secrets", "POST", "/secrets/{id}"},
		{"secrets", "DELETE", "/secrets/{id}"},
	} {
		all = append(all, route{r.method, r.path, access.AnyKey, func(*call) error { return notImplemented(r.what) }})
	}
	return all
}

func notImplemented(what string) error {
	return errs.New(errs.Unsupported, "not_implemented", "this server does not implement %s", what).
		WithHint("its documentation lists what it does implement, in \"Use the E2B SDK\"")
}

// call is one request for the control plane, of an authenticated caller.
type call struct {
	context.Context
	door   *Door
	w      http.ResponseWriter
	r      *http.Request
	params map[string]string
	caller access.Principal
	made   string // id of the VM that the call has made, if it has
}

func (c *call) scope() access.Scope { return c.caller.Scope() }

// answer writes a success.
func (c *call) answer(status int, body any) error {
	writeJSON(c.w, status, body)
	return nil
}

// done answers 204.
func (c *call) done() error {
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// serveControl authenticates the caller of a request, before it learns which routes there
// are, and serves it.
func (d *Door) serveControl(w http.ResponseWriter, r *http.Request) {
	caller, err := d.authenticate(r)
	if err != nil {
		d.fail(w, r, err)
		return
	}
	free, short := d.requests.Take(caller.OwnerID, 1)
	if short != admission.Enough {
		d.fail(w, r, errs.New(errs.TooMany, "too_many_requests", "the user has too many requests in progress"))
		return
	}
	defer free(0)
	ctx, stop := d.cfg.Access.Watch(event.WithCause(r.Context(), event.Cause{Actor: event.ActorOf(caller)}), caller)
	defer stop()
	if err := d.dispatch(&call{Context: ctx, door: d, w: w, r: r, caller: caller}); err != nil {
		d.fail(w, r, err)
	}
}

// dispatch finds the route of a call. Segments are decoded after the path is split: names
// of templates may have slashes.
func (d *Door) dispatch(c *call) error {
	var segments []string
	for segment := range strings.SplitSeq(strings.Trim(c.r.URL.EscapedPath(), "/"), "/") {
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return errs.New(errs.Invalid, "invalid_path", "the path cannot be decoded")
		}
		segments = append(segments, plain)
	}
	var others []string
	for _, rt := range d.routes {
		params, ok := match(rt.path, segments)
		switch {
		case !ok:
			continue
		case rt.method != c.r.Method:
			others = append(others, rt.method)
			continue
		case !c.caller.Rights.Include(rt.needs):
			return errs.New(errs.Forbidden, "forbidden", "cannot do this with this API key: it lacks the scope %q", rt.needs)
		}
		c.params = params
		began := time.Now()
		err := c.limitRate(rt)
		if err == nil {
			err = rt.serve(c)
		}
		c.record(rt, began, err)
		return err
	}
	if len(others) > 0 {
		c.w.Header().Set("Allow", strings.Join(others, ", "))
		writeError(c.w, http.StatusMethodNotAllowed, "this path has no method "+errs.Brief(c.r.Method))
		return nil
	}
	return errs.New(errs.NotFound, "no_route", "there is no route %s", errs.Brief(c.r.URL.Path))
}

func match(path string, segments []string) (params map[string]string, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if len(parts) != len(segments) {
		return nil, false
	}
	params = map[string]string{}
	for i, part := range parts {
		if name, isParam := strings.CutPrefix(part, "{"); isParam {
			params[strings.TrimSuffix(name, "}")] = segments[i]
		} else if part != segments[i] {
			return nil, false
		}
	}
	return params, true
}

// Bounds on the body of a request.
const (
	maxBody     = 1 << 20
	bodyTimeout = 30 * time.Second
)

// decode reads the body into v, which is left as it is if there is none. Fields that it
// does not have are ignored: newer clients send more.
func (c *call) decode(v any) error {
	size := c.r.ContentLength
	if size < 0 || size > maxBody {
		size = maxBody
	}
	free, short := c.door.bodies.Take(c.caller.OwnerID, size)
	if short != admission.Enough {
		return errs.New(errs.TooMany, "too_many_bodies", "too many bodies of requests are being read")
	}
	defer free(0)
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // fails only without a connection, as below
	text, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	_ = control.SetReadDeadline(time.Time{})
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return errs.New(errs.TooLarge, "body_too_large", "the body is too large; the limit is %d bytes", maxBody)
	}
	if err != nil {
		return errs.New(errs.Invalid, "invalid_body", "the body cannot be read").WithCause(err)
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil
	}
	err = json.Unmarshal(text, v)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return errs.InvalidField(wrong.Field, "is a JSON %s; want another type", wrong.Value)
	}
	if err != nil {
		return errs.New(errs.Invalid, "invalid_body", "the body is not JSON: %s", errs.Brief(err.Error()))
	}
	return nil
}
